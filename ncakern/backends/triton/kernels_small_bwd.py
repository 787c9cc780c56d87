"""Few channels, depthwise filters: gradients at the hidden layers, all float32, d_... . Names as in `kernels_small.py`.

With t = (v - center) @ w0 + b0, x = a t + s and out = state + fire * (act(x) @ w1), d_delta being what reaches the
hidden layers of d_out, and g the gradient of x:
    e = a g - c1 - c2 t is the gradient of t. With a norm t is the normalised u, and c1 and c2 follow from the sums of g
    and of g t over all cells; without one, c1, c2 and center are zero.
vectors [B, 5, HP] = (b0, a, s, c1, c2); center [B, 1 + F, CP]; w0 per sample if PER_SAMPLE. parts [B, programs,
2 HP + (2 + F) HP CP] are sums over a program's cells: of g, g t, e^T (v - center) and act(x)^T d_delta.
"""

import triton
import triton.language as tl

from ncakern.backends.triton.common import activate, activate_bwd, matmul, multiply, split
from ncakern.backends.triton.draw import load_draw, tile_fires
from ncakern.backends.triton.march import (
    SIZES,
    add_plane,
    filter_sums,
    load_cells,
    rotate,
    store_cells,
    tile_cells,
    zeros,
)


@triton.jit
def _load_gradient(
    p_d_out, o_plane, o_cell, in_plane, draw, d, h0, quad0, C: tl.constexpr, CP: tl.constexpr, FROZEN: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr,
):  # fmt: skip
    """d_out of a tile's cells in plane d, and d_delta: zero where a cell does not fire or a channel is frozen."""
    d_out = load_cells(p_d_out + o_plane, o_cell, in_plane, C, CP, False)
    fire = tile_fires(draw, d, h0, quad0, TH, TW)
    return d_out, tl.where(fire[:, None] & (tl.arange(0, CP) >= FROZEN)[None, :], d_out, 0.0)


@triton.jit
def _centred(v, p_center, CP: tl.constexpr, F: tl.constexpr, HAS_NORM: tl.constexpr):
    """v - center; p_center is that of the sample."""
    if not HAS_NORM:
        return v
    c = tl.arange(0, CP)
    centred = ()
    for n in tl.static_range(1 + F):
        centred = centred + (v[n] - tl.load(p_center + n * CP + c)[None, :],)
    return centred


@triton.jit
def _hidden(
    v, d_delta, p_w0, p_w1, p_vectors, j, BM: tl.constexpr, CP: tl.constexpr, F: tl.constexpr, HP: tl.constexpr,
    HC: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of the hidden units j [HC]: w0 in split blocks [CP, HC], then t, x, a, g; v is centred."""
    c = tl.arange(0, CP)
    w0 = ()
    t = tl.zeros((BM, HC), tl.float32) + tl.load(p_vectors + j)[None, :]
    for n in tl.static_range(1 + F):
        part = split(tl.load(p_w0 + (n * CP + c)[:, None] * HP + j[None, :]), PRECISION)
        w0 = w0 + part
        t = matmul(v[n], part[0], part[1], t, PRECISION)
    a = tl.load(p_vectors + HP + j)[None, :]
    x = a * t + tl.load(p_vectors + 2 * HP + j)[None, :]
    w1 = split(tl.load(p_w1 + j[None, :] * CP + c[:, None]), PRECISION)
    g = activate_bwd(x, multiply(d_delta, w1[0], w1[1], PRECISION), SLOPE)
    return w0, t, x, a, g


@triton.jit
def _hidden_gradient(t, a, g, in_plane, p_vectors, j, HP: tl.constexpr, HAS_NORM: tl.constexpr):
    """e."""
    e = a * g
    if HAS_NORM:
        e -= tl.load(p_vectors + 3 * HP + j)[None, :] + t * tl.load(p_vectors + 4 * HP + j)[None, :]
        e = tl.where(in_plane[:, None], e, 0.0)
    return e


@triton.jit
def _add_cells(d_v, e, w0, F: tl.constexpr, PRECISION: tl.constexpr):
    """d_v + e @ w0^T, with w0 from `_hidden`."""
    added = ()
    for n in tl.static_range(1 + F):
        high, low = tl.trans(w0[2 * n]), tl.trans(w0[2 * n + 1])
        added = added + (matmul(e, high, low, d_v[n], PRECISION),)
    return added


@triton.jit
def _add_weights(sums, v, d_delta, x, e, F: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr):
    """1 + F sums [HC, CP] of e^T v, and one of act(x)^T d_delta, with a plane's cells added."""
    added = ()
    for n in tl.static_range(1 + F):
        part = split(v[n], PRECISION)
        added = added + (matmul(tl.trans(e), part[0], part[1], sums[n], PRECISION),)
    part = split(d_delta, PRECISION)
    active = tl.trans(activate(x, SLOPE))
    return added + (matmul(active, part[0], part[1], sums[1 + F], PRECISION),)


@triton.jit
def _store_gradients(
    p_d_seen, p_d_y, o_plane, Y_CELLS, o_cell, in_plane, d_v, d_out, C: tl.constexpr, CP: tl.constexpr,
    F: tl.constexpr, HAS_SEEN: tl.constexpr,
):  # fmt: skip
    """d_v to d_seen, plus d_out unless HAS_SEEN, and to d_y."""
    d_seen = d_v[0] if HAS_SEEN else d_v[0] + d_out
    store_cells(p_d_seen + o_plane, o_cell, in_plane, d_seen, C, CP)
    for f in tl.static_range(F):
        p_plane = p_d_y + tl.cast(Y_CELLS, tl.int64) * (f * C) + o_plane
        store_cells(p_plane, o_cell, in_plane, d_v[1 + f], C, CP)


@triton.jit(do_not_specialize=["STEP", *SIZES])
def _nca_sums_bwd_kernel__small(
    p_seen, p_y, p_d_out, p_filters, p_w0, p_w1, p_vectors, p_center, p_parts, p_draw, STEP, D, H, W, W_START, LD,
    NUM_TILES, Y_CELLS, C: tl.constexpr, CP: tl.constexpr, F: tl.constexpr, KD: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, HP: tl.constexpr, HC: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    FROZEN: tl.constexpr, PADDING: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr, PER_SAMPLE: tl.constexpr,
):  # fmt: skip
    """With a norm: the sums of g and g t of a chunk of hidden units; y is computed and kept for the other kernels.

    A program has every programs-th tile of a sample. Grid: (programs, chunks, samples).
    """
    RD: tl.constexpr = KD // 2
    BM: tl.constexpr = TH * TW
    b = tl.program_id(2)
    j = tl.program_id(1) * HC + tl.arange(0, HC)
    plane = tl.cast(H, tl.int64) * W * C
    o_sample = tl.cast(b, tl.int64) * D * plane
    if PER_SAMPLE:
        p_w0 += b * ((1 + F) * CP * HP)
    p_vectors += b * 5 * HP
    p_center += b * (1 + F) * CP

    draw = load_draw(p_draw, STEP, b)
    nothing = tl.zeros((BM, CP), tl.float32)
    sum_g, sum_gt = tl.zeros((HC,), tl.float32), tl.zeros((HC,), tl.float32)
    for tile in range(tl.program_id(0), NUM_TILES, tl.num_programs(0)):
        d0, h0, w0, h, w, in_plane, o_cell = tile_cells(tile, H, W, W_START, LD, TH, TW)
        sums = zeros(F * KD, BM, CP)
        for p in range(d0 - RD, tl.minimum(d0 + LD, D) + RD):
            sums = add_plane(sums, p_seen + o_sample, p_filters, p, h, w, D, H, W, C, CP, F, KD, KH, KW, PADDING)
            d = p - RD
            if d >= d0:
                o_plane = o_sample + plane * d
                z = load_cells(p_seen + o_plane, o_cell, in_plane, C, CP, True)
                y = filter_sums(sums, p_y, o_plane, Y_CELLS, o_cell, in_plane, C, CP, F, KD, False, True)
                v = _centred((z,) + y, p_center, CP, F, True)
                quad0 = (w0 - W_START) // 4
                _, d_delta = _load_gradient(
                    p_d_out, o_plane, o_cell, in_plane, draw, d, h0, quad0, C, CP, FROZEN, TH, TW
                )  # fmt: skip
                _, t, _, _, g = _hidden(v, d_delta, p_w0, p_w1, p_vectors, j, BM, CP, F, HP, HC, SLOPE, PRECISION)
                sum_g += tl.sum(g, 0)
                sum_gt += tl.sum(g * t, 0)
            sums = rotate(sums, nothing, F, KD)

    p_part = p_parts + (tl.cast(b, tl.int64) * tl.num_programs(0) + tl.program_id(0)) * (2 * HP + (2 + F) * HP * CP)
    tl.store(p_part + j, sum_g)
    tl.store(p_part + HP + j, sum_gt)


@triton.jit(do_not_specialize=["STEP", *SIZES])
def _nca_cells_bwd_kernel__small(
    p_seen, p_y, p_d_out, p_d_seen, p_d_y, p_filters, p_w0, p_w1, p_vectors, p_center, p_draw, STEP, D, H, W, W_START,
    LD, NUM_TILES, Y_CELLS, C: tl.constexpr, CP: tl.constexpr, F: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, HP: tl.constexpr, HC: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, FROZEN: tl.constexpr,
    PADDING: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr, PER_SAMPLE: tl.constexpr,
    HAS_SEEN: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """d_v = e @ w0^T, to d_seen (plus d_out, unless HAS_SEEN) and d_y.

    With a norm y is there, and d_y may take its place; without one it is computed and kept. Grid: samples * tiles.
    """
    RD: tl.constexpr = 0 if HAS_NORM else KD // 2
    BM: tl.constexpr = TH * TW
    b = tl.program_id(0) // NUM_TILES
    d0, h0, w0, h, w, in_plane, o_cell = tile_cells(tl.program_id(0) % NUM_TILES, H, W, W_START, LD, TH, TW)
    plane = tl.cast(H, tl.int64) * W * C
    o_sample = tl.cast(b, tl.int64) * D * plane
    if PER_SAMPLE:
        p_w0 += b * ((1 + F) * CP * HP)
    p_vectors += b * 5 * HP
    p_center += b * (1 + F) * CP

    draw = load_draw(p_draw, STEP, b)
    nothing = tl.zeros((BM, CP), tl.float32)
    sums = zeros(F * KD, BM, CP)
    for p in range(d0 - RD, tl.minimum(d0 + LD, D) + RD):
        if not HAS_NORM:
            sums = add_plane(sums, p_seen + o_sample, p_filters, p, h, w, D, H, W, C, CP, F, KD, KH, KW, PADDING)
        d = p - RD
        if d >= d0:
            o_plane = o_sample + plane * d
            z = load_cells(p_seen + o_plane, o_cell, in_plane, C, CP, True)
            y = filter_sums(sums, p_y, o_plane, Y_CELLS, o_cell, in_plane, C, CP, F, KD, HAS_NORM, not HAS_NORM)
            v = _centred((z,) + y, p_center, CP, F, HAS_NORM)
            quad0 = (w0 - W_START) // 4
            d_out, d_delta = _load_gradient(
                p_d_out, o_plane, o_cell, in_plane, draw, d, h0, quad0, C, CP, FROZEN, TH, TW
            )  # fmt: skip
            d_v = zeros(1 + F, BM, CP)
            for i in range(HP // HC):
                j = i * HC + tl.arange(0, HC)
                weights, t, _, a, g = _hidden(v, d_delta, p_w0, p_w1, p_vectors, j, BM, CP, F, HP, HC, SLOPE, PRECISION)
                e = _hidden_gradient(t, a, g, in_plane, p_vectors, j, HP, HAS_NORM)
                d_v = _add_cells(d_v, e, weights, F, PRECISION)
            _store_gradients(p_d_seen, p_d_y, o_plane, Y_CELLS, o_cell, in_plane, d_v, d_out, C, CP, F, HAS_SEEN)
        if not HAS_NORM:
            sums = rotate(sums, nothing, F, KD)


@triton.jit(do_not_specialize=["STEP", *SIZES])
def _nca_weights_bwd_kernel__small(
    p_seen, p_y, p_d_out, p_d_seen, p_d_y, p_w0, p_w1, p_vectors, p_center, p_parts, p_draw, STEP, D, H, W, W_START, LD,
    NUM_TILES, Y_CELLS, C: tl.constexpr, CP: tl.constexpr, F: tl.constexpr, HP: tl.constexpr,
    HC: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, FROZEN: tl.constexpr, SLOPE: tl.constexpr,
    PRECISION: tl.constexpr, PER_SAMPLE: tl.constexpr, HAS_SEEN: tl.constexpr, HAS_NORM: tl.constexpr,
    CELLS: tl.constexpr,
):  # fmt: skip
    """The sums of e^T (v - center) and act(x)^T d_delta, without a norm of g and g t too, for a chunk of hidden units.

    y is there. CELLS: the chunk has all of them, and d_seen and d_y are written, too. A program has every programs-th
    tile of a sample. Grid: (programs, chunks, samples).
    """
    BM: tl.constexpr = TH * TW
    b = tl.program_id(2)
    j = tl.program_id(1) * HC + tl.arange(0, HC)
    plane = tl.cast(H, tl.int64) * W * C
    o_sample = tl.cast(b, tl.int64) * D * plane
    if PER_SAMPLE:
        p_w0 += b * ((1 + F) * CP * HP)
    p_vectors += b * 5 * HP
    p_center += b * (1 + F) * CP

    draw = load_draw(p_draw, STEP, b)
    sum_weights = zeros(2 + F, HC, CP)
    sum_g, sum_gt = tl.zeros((HC,), tl.float32), tl.zeros((HC,), tl.float32)
    for tile in range(tl.program_id(0), NUM_TILES, tl.num_programs(0)):
        d0, h0, w0, _, _, in_plane, o_cell = tile_cells(tile, H, W, W_START, LD, TH, TW)
        for d in range(d0, tl.minimum(d0 + LD, D)):
            if d >= 0:  # as ever; within a condition weights are loaded for each plane, and registers are not spilled
                o_plane = o_sample + plane * d
                z = load_cells(p_seen + o_plane, o_cell, in_plane, C, CP, True)
                y = filter_sums((), p_y, o_plane, Y_CELLS, o_cell, in_plane, C, CP, F, 1, True, False)
                v = _centred((z,) + y, p_center, CP, F, HAS_NORM)
                quad0 = (w0 - W_START) // 4
                d_out, d_delta = _load_gradient(
                    p_d_out, o_plane, o_cell, in_plane, draw, d, h0, quad0, C, CP, FROZEN, TH, TW
                )  # fmt: skip
                weights, t, x, a, g = _hidden(v, d_delta, p_w0, p_w1, p_vectors, j, BM, CP, F, HP, HC, SLOPE, PRECISION)
                if not HAS_NORM:
                    sum_g += tl.sum(g, 0)
                    sum_gt += tl.sum(g * t, 0)
                e = _hidden_gradient(t, a, g, in_plane, p_vectors, j, HP, HAS_NORM)
                sum_weights = _add_weights(sum_weights, v, d_delta, x, e, F, SLOPE, PRECISION)
                if CELLS:
                    d_v = _add_cells(zeros(1 + F, BM, CP), e, weights, F, PRECISION)
                    _store_gradients(
                        p_d_seen, p_d_y, o_plane, Y_CELLS, o_cell, in_plane, d_v, d_out, C, CP, F, HAS_SEEN
                    )  # fmt: skip

    c = tl.arange(0, CP)
    p_part = p_parts + (tl.cast(b, tl.int64) * tl.num_programs(0) + tl.program_id(0)) * (2 * HP + (2 + F) * HP * CP)
    if not HAS_NORM:
        tl.store(p_part + j, sum_g)
        tl.store(p_part + HP + j, sum_gt)
    for n in tl.static_range(2 + F):
        tl.store(p_part + 2 * HP + (n * HP + j)[:, None] * CP + c[None, :], sum_weights[n])
