#!/usr/bin/env bash
# What only an accelerator can show, in stages. Each ends within nine minutes; called again it goes on where it stopped.
#
#   benchmarks/gpu/check.sh a [FOLDER]    correctness: tests marked gpu; compute-sanitizer on small grids
#   benchmarks/gpu/check.sh b [FOLDER]    speed and memory of gpu/cases.toml: rows, their tables, plots
#   benchmarks/gpu/check.sh c [FOLDER]    tiles: the fastest of each kernel, for tiles.py
#   benchmarks/gpu/check.sh d [FOLDER]    training by recipe, on NCASEG_DATA or on synthetic volumes
#
# FOLDER (default: benchmarks/results/gpu) takes marks of what is done, logs, rows and runs. Needs torch for CUDA with its
# Triton, numpy and pytest; stage d also nibabel, pillow, safetensors and tqdm. Nothing is installed, built or fetched, and
# no setting of the card is changed. PYTHON names the interpreter.
#
# Exit codes: 0 the stage is done, 3 its time is up (call it again), anything else is a failure, with its log named.
set -uo pipefail

stage=${1:-} folder=${2:-benchmarks/results/gpu}
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-python3}
mkdir -p "$folder/done" "$folder/log"
folder=$(realpath "$folder")

export PYTHONPATH=.:python_api PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
unset TRITON_INTERPRET
# Compiled kernels outlive a call that ran out of time.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$HOME/.cache/ncakern-triton} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$HOME/.cache/ncakern-inductor}
deadline=$((SECONDS + 520))

left() { echo $((deadline - SECONDS)); }

# once NAME COMMAND...: run a piece unless an earlier call finished it; stop the stage when time is up or it fails.
once() {
    local name=$1 log=$folder/log/$1.log code
    shift
    [ -e "$folder/done/$name" ] && { echo "$name: done before"; return; }
    [ "$(left)" -gt 20 ] || { echo "$name: no time left"; exit 3; }
    echo "$name: $*"
    timeout --signal=INT --kill-after=15 "$(left)" "$@" >"$log" 2>&1
    code=$?
    tail -n 60 "$log"
    case $code in
    0) touch "$folder/done/$name" ;;
    3 | 124 | 130 | 137) echo "$name: time is up; call again"; exit 3 ;;
    *) echo "$name: failed with code $code; see $log"; exit 1 ;;
    esac
}

# tests NAME ARGUMENTS...: a part of the tests. Most of their time is compiling, which several processes share.
tests() {
    local name=$1 workers=()
    shift
    "$python" -c 'import xdist' 2>/dev/null && workers=(-n 8)
    once "$name" "$python" -m pytest -q -p no:cacheprovider -m gpu "${workers[@]}" tests/kern/test_triton_gpu.py "$@"
}

correctness() {
    once card "$python" -c 'import torch, triton; print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)'
    once info "$python" -m ncakern.info
    tests tests-match -k match_float64
    tests tests-rest -k "not match_float64 and not offsets"
    tests tests-offsets -k offsets
    once small "$python" -m benchmarks.gpu.small
    if ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer: not on this machine; memory and races are not checked"
        return
    fi
    for tool in memcheck racecheck; do
        once "sanitizer-$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
            compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m benchmarks.gpu.small
    done
}

speed() {
    tests before-speed -k "match_float64 and (129x67x45 or 255x129)" # no speed without correctness
    once speed "$python" -m benchmarks.gpu.run --out "$folder/rows.jsonl" --seconds $(($(left) - 60))
    once plots "$python" -m benchmarks.gpu.plots "$folder/rows.jsonl" -o "$folder"
}

tiles() {
    once tiles "$python" -m benchmarks.gpu.tune --out "$folder/tiles.jsonl" --seconds $(($(left) - 30))
}

training() {
    local data=$folder/volumes
    if [ -n "${NCASEG_DATA:-}" ]; then
        data=$NCASEG_DATA/Task04_Hippocampus
    else
        once volumes "$python" -c "from ncaseg.data.phantom import write_phantoms; write_phantoms('$data', 40)"
    fi
    for recipe in m3d-hippocampus-fast m3d-hippocampus-2level; do
        once "train-$recipe" "$python" -m ncaseg train "$recipe" train.device=cuda --data "$data" -o "$folder/$recipe"
        once "score-$recipe" "$python" -m ncaseg evaluate "$folder/$recipe/model.safetensors" --data "$data" \
            --split "$folder/$recipe/split.json" --json "$folder/$recipe/scores.json"
    done
}

case $stage in
a) correctness ;;
b) speed ;;
c) tiles ;;
d) training ;;
*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
echo "stage $stage is done; results in $folder"
