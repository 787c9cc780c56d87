#!/usr/bin/env bash
# Prediction without torch on aarch64, emulated: Debian 12's Python, wheels of PyPI, the extension cross-compiled by
# setup.py, and `python -m ncaseg.edge` on a Cortex-A53, which knows plain armv8-a and nothing more (Raspberry Pi 3).
#
#   tests/seg/aarch64/check.sh [FOLDER]
#
# FOLDER (default: build/aarch64) takes what is downloaded (50 MB, once; delete it to fetch again), built and predicted.
# Nothing is installed, and root is not needed. PYTHON names an interpreter with torch, pip and the built project.
#
# Exit codes: 0 both machines agree with float64, 77 a tool or a download is missing, anything else is a failure.
set -euo pipefail

folder=${1:-build/aarch64}
mkdir -p "$folder"
folder=$(realpath "$folder")
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
here=tests/seg/aarch64 system=$folder/system wheels=$folder/wheels
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
model=m3d-hippocampus-fast scan=$folder/phantom/imagesTr/phantom_000.nii.gz

skip() { echo "skipped: $*" >&2; exit 77; }

check_tools() {
    local tool
    for tool in aarch64-linux-gnu-g++ qemu-aarch64 apt-get dpkg-deb "$python"; do
        command -v "$tool" >/dev/null || skip "$tool is missing (Debian: g++-aarch64-linux-gnu, qemu-user; make .venv)"
    done
    [ -e "$keyring" ] || skip "$keyring is missing (Debian: debian-archive-keyring)"
    # A newer compiler asks for a newer C library than Debian 12 has.
    [ "$(aarch64-linux-gnu-g++ -dumpversion | cut -d. -f1)" -le 12 ] || skip "aarch64-linux-gnu-g++ must be 12 or older"
}

# Packages of another architecture, by a configuration and lists of their own: the system's know nothing of it.
fetch_system() {
    local apt=$folder/apt
    rm -rf "$apt" "$system.part"
    mkdir -p "$apt"/{etc/apt.conf.d,etc/preferences.d,state/lists/partial,cache/archives/partial,dpkg,log}
    : >"$apt/dpkg/status"
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian bookworm main" >"$apt/etc/sources.list"
    cat >"$apt/apt.conf" <<END
APT::Architecture "arm64"; APT::Architectures "arm64"; APT::Sandbox::User "root"; Acquire::Languages "none";
Dir::Etc "$apt/etc"; Dir::State "$apt/state"; Dir::State::status "$apt/dpkg/status";
Dir::Cache "$apt/cache"; Dir::Log "$apt/log";
END
    export APT_CONFIG=$apt/apt.conf
    # The headers come without what they depend on: the cross compiler has its own.
    apt-get -qq update &&
        apt-get -qq install --yes --no-install-recommends --download-only python3.11 libgomp1 libstdc++6 &&
        (cd "$apt/cache/archives" && apt-get -qq download libpython3.11-dev) &&
        printf '%s\0' "$apt/cache/archives/"*.deb | xargs -0 -I{} dpkg-deb --extract {} "$system.part" &&
        mv "$system.part" "$system" &&
        rm -rf "$apt"
}

fetch_wheels() {
    rm -rf "$wheels.part"
    "$python" -m pip install -qq --target "$wheels.part" --constraint constraints.txt --python-version 3.11 \
        --only-binary=:all: --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 \
        numpy nibabel safetensors setuptools pybind11 &&
        mv "$wheels.part" "$wheels"
}

emulated() {
    PYTHONPATH=$folder/lib:$wheels qemu-aarch64 -cpu cortex-a53 -L "$system" "$system/usr/bin/python3.11" "$@"
}

native() { PYTHONPATH=.:python_api:tests "$python" "$@"; }

# Python is emulated and so names the target's compiler and flags; the compiler that it starts runs at full speed.
build() {
    rm -rf "$folder/lib"
    CPPFLAGS="-I$system/usr/include -I$system/usr/include/python3.11" CFLAGS=-march=armv8-a NCAKERN_REQUIRE_EXT=1 \
        emulated setup.py --quiet build --build-base "$folder/objects" --build-lib "$folder/lib"
}

check_tools
[ -d "$system" ] || fetch_system || skip "arm64 packages of Debian 12 cannot be had from http://deb.debian.org"
[ -d "$wheels" ] || fetch_wheels || skip "pip finds no wheels for aarch64, see above"
build
native -c "from ncaseg.data.phantom import write_phantoms as w; w('$folder/phantom', 1, size=(24, 28, 20))"
export OMP_WAIT_POLICY=PASSIVE
emulated "$here/predict.py" "$model" "$scan" "$folder/emulated"
native "$here/predict.py" "$model" "$scan" "$folder/native"
native "$here/compare.py" "$model" "$scan" "$folder"
