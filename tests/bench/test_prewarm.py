"""What was compiled without a card is found again by Triton's own launcher, given real tensors."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.gpu.small import SMALL
from benchmarks.harness.source import ROOT

pytest.importorskip("triton", reason="needs the package triton, to compile kernels")

# A process of its own: in this one, Triton's interpreter has taken the place of its compiler.
SCRIPT = """
import json, sys, torch
from benchmarks.gpu import prewarm
from triton.runtime.jit import MockTensor
CHEAP = ("_nca_draw_kernel", "_nca_norm_fwd_kernel__fold", "_nca_work_list_fwd_kernel")
chosen = list(prewarm.problems())[-3:-2]
prewarm.problems = lambda: iter(chosen)
collected = prewarm.collect(*prewarm.HOPPER)
prewarm.collect = lambda *_: [job for job in collected if job[0].__name__ in CHEAP]
found = [prewarm.prewarm(seconds=300, workers=2) for _ in range(2)]
for kernel, args, keywords in prewarm._JOBS:  # as a user's call would
    for device_cache in kernel.device_caches.values():
        device_cache[0].clear()
real = [(k, [torch.empty(64, dtype=a.dtype) if isinstance(a, MockTensor) else a for a in args], kw)
        for k, args, kw in prewarm._JOBS]
prewarm._JOBS[:] = real
found.append([prewarm.compile_job(index) for index in range(len(real))])
try:
    prewarm.prewarm(seconds=-1, workers=1)
except TimeoutError:
    found.append("time is up")
print(json.dumps(found))
"""


def test_compiled_kernels_are_found_again(tmp_path):
    own = {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)]), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, env=os.environ | own, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, real, late = json.loads(done.stdout.splitlines()[-1])
    assert first == [3, 0, []] and second == [3, 3, []]
    assert [(hit, error) for _, hit, error in real] == [(True, None)] * 3
    assert late == "time is up" and SMALL
