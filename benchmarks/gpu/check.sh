#!/usr/bin/env bash
# What only an accelerator can show, in three calls: `check.sh 1|2|3`; `check.sh --help` says more.
#
# Needs torch for CUDA with its Triton, numpy and pytest. Nothing is installed, built or fetched, and no setting of the
# card is changed. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH=.:python_api PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
unset TRITON_INTERPRET
exec "${PYTHON:-python3}" -m benchmarks.gpu.check "$@"
