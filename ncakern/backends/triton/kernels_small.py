"""Few channels, depthwise filters: the step, its norm statistics and the gradients of a cell, fused.

Shapes: state [B, D, H, W, C]; CP, HP: C and hidden rounded up for the tensor cores, all weights zero beyond; F filters
of KD x KH x KW; w0 [1 + F, CP, HP] and w1 [HP, CP], used in NUM_CHUNKS chunks of HC hidden units. A program has
BM = TH * TW cells of a plane and marches through LD planes. v = (z, y_1, ..., y_F): a cell's channels and each filter's
sum there, without a bias.
"""

import triton
import triton.language as tl

from ncakern.backends.triton.common import activate, matmul, multiply, split, to_storage
from ncakern.backends.triton.draw import load_draw, tile_fires
from ncakern.backends.triton.march import SIZES, add_plane, filter_sums, load_cells, rotate, tile_cells, zeros


@triton.jit
def _split_weights(
    p_w0, p_w1, CHUNK, HP: tl.constexpr, CP: tl.constexpr, F: tl.constexpr, HC: tl.constexpr, PRECISION: tl.constexpr
):
    """A chunk's high and low parts (see `split`): 1 + F blocks [CP, HC] of w0, then [HC, CP] of w1."""
    c = tl.arange(0, CP)
    j = CHUNK * HC + tl.arange(0, HC)
    high, low = (), ()
    for n in tl.static_range(1 + F):
        part = split(tl.load(p_w0 + (n * CP + c)[:, None] * HP + j[None, :]), PRECISION)
        high, low = high + (part[0],), low + (part[1],)
    part = split(tl.load(p_w1 + j[:, None] * CP + c[None, :]), PRECISION)
    return high + (part[0],), low + (part[1],)


@triton.jit(do_not_specialize=["STEP", *SIZES])
def _nca_step_fwd_kernel__small(
    p_state,
    p_seen,
    p_y,
    p_out,
    p_filters,
    p_w0,
    p_b0,
    p_w1,
    p_draw,
    STEP,
    D,
    H,
    W,
    W_START,
    LD,
    NUM_TILES,
    Y_CELLS,
    C: tl.constexpr,
    CP: tl.constexpr,
    F: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    HP: tl.constexpr,
    HC: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    FROZEN: tl.constexpr,
    PADDING: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    LOADS_Y: tl.constexpr,
):
    """out = state + fire * (act(v @ w0 + b0) @ w1), v of seen; norm and modulation are folded into w0 and b0.

    PER_SAMPLE: w0 and b0 have a leading axis of samples. HAS_SEEN: seen is not state. LOADS_Y: y is there and
    is not computed again. Grid: samples * tiles.
    """
    RD: tl.constexpr = 0 if LOADS_Y else KD // 2
    BM: tl.constexpr = TH * TW
    NUM_CHUNKS: tl.constexpr = HP // HC
    b = tl.program_id(0) // NUM_TILES
    d0, h0, w0, h, w, in_plane, o_cell = tile_cells(tl.program_id(0) % NUM_TILES, H, W, W_START, LD, TH, TW)

    c = tl.arange(0, CP)
    plane = tl.cast(H, tl.int64) * W * C
    o_sample = tl.cast(b, tl.int64) * D * plane
    o_store = o_cell[:, None] * C + c[None, :]
    m_store = in_plane[:, None] & (c < C)[None, :]
    if PER_SAMPLE:
        p_w0 += b * ((1 + F) * CP * HP)
        p_b0 += b * HP

    draw = load_draw(p_draw, STEP, b)
    high, low, b0 = (), (), ()
    for i in tl.static_range(NUM_CHUNKS):
        part = _split_weights(p_w0, p_w1, i, HP, CP, F, HC, PRECISION)
        high, low = high + part[0], low + part[1]
        b0 = b0 + (tl.load(p_b0 + i * HC + tl.arange(0, HC)),)

    sums = zeros(F * KD, BM, CP)
    nothing = tl.zeros((BM, CP), tl.float32)
    for p in range(d0 - RD, tl.minimum(d0 + LD, D) + RD):
        if not LOADS_Y:
            sums = add_plane(sums, p_seen + o_sample, p_filters, p, h, w, D, H, W, C, CP, F, KD, KH, KW, PADDING)
        d = p - RD
        if d >= d0:
            o_plane = o_sample + plane * d
            z = load_cells(p_seen + o_plane, o_cell, in_plane, C, CP, True)
            y = filter_sums(sums, p_y, o_plane, Y_CELLS, o_cell, in_plane, C, CP, F, KD, LOADS_Y, False)
            delta = nothing
            for i in tl.static_range(NUM_CHUNKS):
                u = multiply(z, high[i * (2 + F)], low[i * (2 + F)], PRECISION)
                for f in tl.static_range(F):
                    u = matmul(y[f], high[i * (2 + F) + 1 + f], low[i * (2 + F) + 1 + f], u, PRECISION)
                active = activate(u + b0[i][None, :], SLOPE)
                delta = matmul(active, high[i * (2 + F) + 1 + F], low[i * (2 + F) + 1 + F], delta, PRECISION)
            fire = tile_fires(draw, d, h0, (w0 - W_START) // 4, TH, TW)
            moves = fire[:, None] & (c >= FROZEN)[None, :]

            before = tl.load(p_state + o_plane + o_store, mask=m_store, other=0.0)
            base = before.to(tl.float32) if HAS_SEEN else z
            after = tl.where(moves, to_storage(base + delta, before.dtype), before)
            tl.store(p_out + o_plane + o_store, after, mask=m_store)
        if not LOADS_Y:
            sums = rotate(sums, nothing, F, KD)


@triton.jit(do_not_specialize=SIZES)
def _nca_stats_fwd_kernel__small(
    p_seen,
    p_y,
    p_filters,
    p_w0,
    p_parts,
    D,
    H,
    W,
    W_START,
    LD,
    NUM_TILES,
    Y_CELLS,
    C: tl.constexpr,
    CP: tl.constexpr,
    F: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    HP: tl.constexpr,
    HC: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    PADDING: tl.constexpr,
    PRECISION: tl.constexpr,
    STORES_Y: tl.constexpr,
):
    """Of u = v @ w0 over a program's cells: count, shift, sum of u - shift, sum of its square; and the sum of v.

    The shift is the mean over the first plane. parts [B, programs, 1 + 3 HP + (1 + F) CP]. Each program has every
    programs-th tile of a sample and one chunk of hidden units. STORES_Y: y is written as well, by every chunk alike.
    Grid: (programs, chunks, samples).
    """
    BM: tl.constexpr = TH * TW
    b = tl.program_id(2)

    c = tl.arange(0, CP)
    j = tl.program_id(1) * HC + tl.arange(0, HC)
    plane = tl.cast(H, tl.int64) * W * C
    o_sample = tl.cast(b, tl.int64) * D * plane

    high, low = (), ()
    for n in tl.static_range(1 + F):
        part = split(tl.load(p_w0 + (n * CP + c)[:, None] * HP + j[None, :]), PRECISION)
        high, low = high + (part[0],), low + (part[1],)
    nothing = tl.zeros((BM, CP), tl.float32)
    sum_v = zeros(1 + F, BM, CP)
    sum_u, sum_uu = tl.zeros((BM, HC), tl.float32), tl.zeros((BM, HC), tl.float32)
    shift = tl.zeros((HC,), tl.float32)
    count = 0.0
    for tile in range(tl.program_id(0), NUM_TILES, tl.num_programs(0)):
        d0, _, _, h, w, in_plane, o_cell = tile_cells(tile, H, W, W_START, LD, TH, TW)
        in_plane_count = tl.sum(in_plane.to(tl.float32), 0)
        sums = zeros(F * KD, BM, CP)
        for p in range(d0 - KD // 2, tl.minimum(d0 + LD, D) + KD // 2):
            sums = add_plane(sums, p_seen + o_sample, p_filters, p, h, w, D, H, W, C, CP, F, KD, KH, KW, PADDING)
            d = p - KD // 2
            if d >= d0:
                o_plane = o_sample + plane * d
                z = load_cells(p_seen + o_plane, o_cell, in_plane, C, CP, True)
                y = filter_sums(sums, p_y, o_plane, Y_CELLS, o_cell, in_plane, C, CP, F, KD, False, STORES_Y)
                u = multiply(z, high[0], low[0], PRECISION)
                added = (sum_v[0] + tl.where(in_plane[:, None], z, 0.0),)
                for f in tl.static_range(F):
                    u = matmul(y[f], high[1 + f], low[1 + f], u, PRECISION)
                    added = added + (sum_v[1 + f] + tl.where(in_plane[:, None], y[f], 0.0),)
                sum_v = added
                if count == 0.0:
                    shift = tl.sum(tl.where(in_plane[:, None], u, 0.0), 0) / in_plane_count
                count += in_plane_count
                shifted = tl.where(in_plane[:, None], u - shift[None, :], 0.0)
                sum_u += shifted
                sum_uu += shifted * shifted
            sums = rotate(sums, nothing, F, KD)

    p_part = p_parts + (tl.cast(b, tl.int64) * tl.num_programs(0) + tl.program_id(0)) * (1 + 3 * HP + (1 + F) * CP)
    tl.store(p_part, count)
    tl.store(p_part + 1 + j, shift)
    tl.store(p_part + 1 + HP + j, tl.sum(sum_u, 0))
    tl.store(p_part + 1 + 2 * HP + j, tl.sum(sum_uu, 0))
    for n in tl.static_range(1 + F):
        tl.store(p_part + 1 + 3 * HP + n * CP + c, tl.sum(sum_v[n], 0))
