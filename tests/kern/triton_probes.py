"""Kernels around the device functions that all Triton kernels share. Import in a test with `triton_interpreter`."""

import triton
import triton.language as tl

from ncakern.backends.triton import common


@triton.jit
def probe_fires(p_one, p_quads, SEED, STEP, SAMPLE, THRESHOLD, N: tl.constexpr):
    """N cells, eight in a row from row 5 on: one Philox call per cell, and one per four."""
    i = tl.arange(0, N)
    quad = tl.arange(0, N // 4)
    tl.store(p_one + i, common.fires(SEED, STEP, SAMPLE, THRESHOLD, i // 8 + 5, i % 8))
    tl.store(p_quads + i, common.fires_in_quads(SEED, STEP, SAMPLE, THRESHOLD, quad // 2 + 5, quad % 2, N))


@triton.jit
def probe_to_storage(p_in, p_out, N: tl.constexpr):
    """out = in, rounded to the type of out."""
    i = tl.arange(0, N)
    tl.store(p_out + i, common.to_storage(tl.load(p_in + i), p_out.dtype.element_ty))


@triton.jit
def probe_pad_entry(p_out, e, SIZE, N: tl.constexpr, K: tl.constexpr, PADDING: tl.constexpr):
    """Of entry e, for N cells: source, or -1 where it is not shown; tap."""
    i = tl.arange(0, N)
    source, tap, shown = common.pad_entry(i, e, SIZE, K, PADDING)
    tl.store(p_out + i, tl.where(shown, source, -1))
    tl.store(p_out + N + i, source * 0 + tap)


@triton.jit
def probe_matmul(p_a, p_b, p_out, TERMS, N: tl.constexpr, PRECISION: tl.constexpr):
    """out [N, N] = a [N, TERMS] @ b [TERMS, N], N terms at a time."""
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    acc = tl.zeros((N, N), tl.float32)
    for first in range(0, TERMS, N):
        high, low = common.split(tl.load(p_b + (first + i) * N + j), PRECISION)
        acc = common.matmul(tl.load(p_a + i * TERMS + first + j), high, low, acc, PRECISION)
    tl.store(p_out + i * N + j, acc)
