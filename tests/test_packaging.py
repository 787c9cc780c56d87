"""What is shipped, and what it can do: a wheel in an environment of its own, away from the source."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import ncakern

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# What git tracks at the root and a build reads. No build output, or an old one would hide what is missing.
SOURCE = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "csrc", "ncakern", "python_api"]
BUILT = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

IMPORT_ALL = """
import importlib, pkgutil
for package in map(importlib.import_module, ("ncakern", "ncaseg")):
    print(package.__file__)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""
ROLLOUT = """
import sys, torch, ncakern
nca = ncakern.NCA(2, channels=4, hidden=8)
print(nca(torch.rand(1, 5, 6, 4), 2, seed=0, backend=sys.argv[1]).shape)
"""


def copy_source(target: Path) -> Path:
    target.mkdir()
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=BUILT)
        else:
            shutil.copy(ROOT / name, target / name)
    return target


class Environment:
    """A fresh virtual environment that sees the other packages of the running one, but not its copy of ours."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder)
        self.folder, self.python, self.said = folder, str(folder / "bin" / "python"), ""
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        # Python does not read the .pth files of a folder added so: the other's in-place install stays unseen.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run this environment's Python; stderr joins stdout."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NCAKERN_"))}
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env=inherited | {"OMP_NUM_THREADS": "1"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout
        return done

    def install(self, what: Path, *, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        offline = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir", "--disable-pip-version-check"]
        return self.run("-m", "pip", "install", *offline, str(what), check=check, **variables)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Build the sdist from the source and the wheel from the sdist, which proves that the sdist is enough."""
    source = copy_source(tmp_path_factory.mktemp("packaging") / "source")
    command = [sys.executable, "-m", "build", "--no-isolation", str(source)]
    done = subprocess.run(
        command, cwd=source, env=os.environ | {"NCAKERN_REQUIRE_EXT": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return source / "dist"


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """Install the wheel elsewhere."""
    environment = Environment(tmp_path_factory.mktemp("installed") / "venv")
    environment.install(next(dist.glob("*.whl")))
    return environment


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory):
    """Install from source where every compiler fails."""
    folder = tmp_path_factory.mktemp("no_compiler")
    environment = Environment(folder / "venv")
    environment.said = environment.install(copy_source(folder / "source"), CC="/bin/false", CXX="/bin/false").stdout
    return environment


def package_files(*patterns: str) -> set[str]:
    """Name the source's package files as the wheel should hold them."""
    roots = {"ncakern": ROOT, "ncaseg": ROOT / "python_api"}
    return {
        path.relative_to(root).as_posix()
        for package, root in roots.items()
        for pattern in patterns
        for path in (root / package).rglob(pattern)
    }


def test_wheel_holds_the_packages_their_data_and_the_extension(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    packages = {name for name in names if ".dist-info/" not in name}
    assert packages == package_files("*.py", "py.typed", "*.md", "*.toml", "zoo/*.*") | {f"ncakern/_cpu{SUFFIX}"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_holds_all_that_a_build_reads(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")} <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.endswith(SUFFIX)]


def test_every_module_of_the_wheel_imports(installed):
    printed = installed.run("-W", "error", "-c", IMPORT_ALL).stdout.split()
    paths = [Path(line) for line in printed if "/" in line]
    assert len(paths) == 2
    assert all(path.is_relative_to(installed.folder) for path in paths)
    assert {"ncakern._cpu", "ncakern.backends.cpu", "ncaseg.training.loop", "ncaseg.models.m3d"} <= set(printed)


def test_wheel_runs_the_kernel(installed):
    assert "torch.Size([1, 5, 6, 4])" in installed.run("-c", ROLLOUT, "cpu").stdout


def test_wheel_has_the_command(installed):
    done = subprocess.run([installed.folder / "bin" / "ncaseg", "--help"], capture_output=True, text=True, check=True)
    assert "train" in done.stdout


def test_without_a_compiler_the_rest_installs_and_runs(without_compiler):
    printed = without_compiler.run("-c", IMPORT_ALL).stdout.split()
    assert "ncakern.functional" in printed
    assert "ncakern._cpu" not in printed
    assert "torch.Size([1, 5, 6, 4])" in without_compiler.run("-c", ROLLOUT, "reference").stdout


def test_without_a_compiler_it_says_what_is_missing(without_compiler):
    last = without_compiler.said.strip().splitlines()[-1]
    assert last == f"Successfully installed ncakern-{ncakern.__version__}+no.compiler.no.fast.kernel"
    assert "ncakern._cpu is not built" in without_compiler.run("-m", "ncakern.info").stdout
    done = without_compiler.run("-c", ROLLOUT, "cpu", check=False)
    assert done.returncode != 0
    assert "RuntimeError" in done.stdout
    assert "reinstall with a C++ compiler" in done.stdout


def test_required_extension_makes_a_missing_compiler_an_error(tmp_path):
    environment = Environment(tmp_path / "venv")
    source = copy_source(tmp_path / "source")
    done = environment.install(source, check=False, CC="/bin/false", CXX="/bin/false", NCAKERN_REQUIRE_EXT="1")
    assert done.returncode != 0
    assert "/bin/false" in done.stdout


def test_misspelt_build_switch_is_refused(tmp_path):
    environment = Environment(tmp_path / "venv")
    done = environment.install(copy_source(tmp_path / "source"), check=False, NCAKERN_REQUIRE_EXT="yes")
    assert done.returncode != 0
    assert "NCAKERN_REQUIRE_EXT must be 0 or 1; got 'yes'" in done.stdout
