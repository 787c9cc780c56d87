"""Few channels, depthwise filters: gradients, all float32, d_... . Shapes and names as in `kernels_small.py`."""

import triton
import triton.language as tl

from ncakern.backends.triton.common import activate, activate_bwd, matmul, pad_entry, pad_index, pad_shows, split
from ncakern.backends.triton.draw import load_draw, tile_fires
from ncakern.backends.triton.march import add_plane, filter_sums, load_cells, rotate, store_cells, tile_start, zeros


@triton.jit(do_not_specialize=["STEP"])
def _nca_cells_bwd_kernel__small(
    p_seen,
    p_y,
    p_d_out,
    p_d_seen,
    p_d_y,
    p_filters,
    p_w0,
    p_w1,
    p_vectors,
    p_center,
    p_parts,
    p_draw,
    STEP,
    D,
    H,
    W,
    W_START,
    LD,
    NUM_TILES,
    Y_STRIDE,
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
    PROGRAMS: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    HAS_NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
    SUMS: tl.constexpr,
    CELLS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    LOADS_Y: tl.constexpr,
    STORES_Y: tl.constexpr,
):
    """With t = (v - center) @ w0 + b0, x = a t + s, out = state + fire * (act(x) @ w1) and g the gradient of x:

    SUMS: the sums of g and g t over cells. With a norm t is the normalised u, and the others need c1 and c2 from these:
    e = a g - c1 - c2 t, the gradient of t (c1 = c2 = 0 without a norm).
    CELLS: d_v = e @ w0^T, to d_seen (plus d_out, unless HAS_SEEN) and d_y.
    WEIGHTS: the sums of e^T (v - center) and act(x)^T d_out.

    vectors [B, 5, HP] = (b0, a, s, c1, c2); center [B, 1 + F, CP]; w0 per sample if PER_SAMPLE. parts [B, PROGRAMS,
    2 HP + (2 + F) HP CP]. A program has CHUNKS chunks of hidden units; all of them for CELLS, one for SUMS and WEIGHTS.
    LOADS_Y, STORES_Y: y is there, or is kept for another launch. Grid: (samples * PROGRAMS, chunks / CHUNKS).
    """
    RD: tl.constexpr = 0 if LOADS_Y else KD // 2
    BM: tl.constexpr = TH * TW
    b = tl.program_id(0) // PROGRAMS
    first_chunk = tl.program_id(1) * CHUNKS

    c = tl.arange(0, CP)
    cell = tl.arange(0, BM)
    plane = tl.cast(H, tl.int64) * W * C
    o_sample = tl.cast(b, tl.int64) * D * plane
    if PER_SAMPLE:
        p_w0 += b * ((1 + F) * CP * HP)
    p_vectors += b * 5 * HP
    p_center += b * (1 + F) * CP

    draw = load_draw(p_draw, STEP, b)
    nothing = tl.zeros((BM, CP), tl.float32)
    sum_weights = zeros(2 + F, HC, CP)
    sum_g, sum_gt = tl.zeros((HC,), tl.float32), tl.zeros((HC,), tl.float32)
    for tile in range(tl.program_id(0) % PROGRAMS, NUM_TILES, PROGRAMS):
        d0, h0, w_left = tile_start(tile, H, W, W_START, LD, TH, TW)
        h, w = h0 + cell // TW, w_left + cell % TW
        in_plane = (h < H) & (w >= 0) & (w < W)
        o_cell = tl.minimum(h, H - 1) * W + tl.minimum(tl.maximum(w, 0), W - 1)
        sums = zeros(F * KD, BM, CP)
        for p in range(d0 - RD, tl.minimum(d0 + LD, D) + RD):
            if not LOADS_Y:
                sums = add_plane(sums, p_seen + o_sample, p_filters, p, h, w, D, H, W, C, CP, F, KD, KH, KW, PADDING)
            d = p - RD
            if d >= d0:
                o_plane = o_sample + plane * d
                z = load_cells(p_seen + o_plane, o_cell, in_plane, C, CP, True)
                v = (z,) + filter_sums(sums, p_y, o_plane, Y_STRIDE, o_cell, in_plane, C, CP, F, KD, LOADS_Y, STORES_Y)
                if HAS_NORM:
                    centred = ()
                    for n in tl.static_range(1 + F):
                        centred = centred + (v[n] - tl.load(p_center + n * CP + c)[None, :],)
                    v = centred
                d_out = load_cells(p_d_out + o_plane, o_cell, in_plane, C, CP, False)
                fire = tile_fires(draw, d, h0, (w_left - W_START) // 4, TH, TW)
                d_delta = tl.where(fire[:, None] & (c >= FROZEN)[None, :], d_out, 0.0)

                d_v = zeros(1 + F, BM, CP)
                for i in range(CHUNKS):
                    j = (first_chunk + i) * HC + tl.arange(0, HC)
                    w0 = ()
                    t = tl.zeros((BM, HC), tl.float32) + tl.load(p_vectors + j)[None, :]
                    for n in tl.static_range(1 + F):
                        part = split(tl.load(p_w0 + (n * CP + c)[:, None] * HP + j[None, :]), PRECISION)
                        w0 = w0 + part
                        t = matmul(v[n], part[0], part[1], t, PRECISION)
                    a = tl.load(p_vectors + HP + j)[None, :]
                    x = a * t + tl.load(p_vectors + 2 * HP + j)[None, :]
                    w1 = split(tl.load(p_w1 + j[None, :] * CP + c[:, None]), PRECISION)
                    d_active = matmul(d_delta, w1[0], w1[1], tl.zeros((BM, HC), tl.float32), PRECISION)
                    g = activate_bwd(x, d_active, SLOPE)
                    if SUMS:
                        sum_g += tl.sum(g, 0)
                        sum_gt += tl.sum(g * t, 0)
                    e = a * g
                    if HAS_NORM:
                        e -= tl.load(p_vectors + 3 * HP + j)[None, :] + t * tl.load(p_vectors + 4 * HP + j)[None, :]
                        e = tl.where(in_plane[:, None], e, 0.0)
                    if WEIGHTS:
                        added = ()
                        for n in tl.static_range(1 + F):
                            part = split(v[n], PRECISION)
                            added = added + (matmul(tl.trans(e), part[0], part[1], sum_weights[n], PRECISION),)
                        part = split(d_delta, PRECISION)
                        active = tl.trans(activate(x, SLOPE))
                        sum_weights = added + (matmul(active, part[0], part[1], sum_weights[1 + F], PRECISION),)
                    if CELLS:
                        added = ()
                        for n in tl.static_range(1 + F):
                            high, low = tl.trans(w0[2 * n]), tl.trans(w0[2 * n + 1])
                            added = added + (matmul(e, high, low, d_v[n], PRECISION),)
                        d_v = added
                if CELLS:
                    d_seen = d_v[0] if HAS_SEEN else d_v[0] + d_out
                    store_cells(p_d_seen + o_plane, o_cell, in_plane, d_seen, C, CP)
                    for f in tl.static_range(F):
                        p_d_y_f = p_d_y + tl.cast(Y_STRIDE, tl.int64) * f
                        store_cells(p_d_y_f + o_plane, o_cell, in_plane, d_v[1 + f], C, CP)
            if not LOADS_Y:
                sums = rotate(sums, nothing, F, KD)

    p_part = p_parts + tl.program_id(0).to(tl.int64) * (2 * HP + (2 + F) * HP * CP)
    j = first_chunk * HC + tl.arange(0, HC)
    if SUMS:
        tl.store(p_part + j, sum_g)
        tl.store(p_part + HP + j, sum_gt)
    if WEIGHTS:
        for n in tl.static_range(2 + F):
            tl.store(p_part + 2 * HP + (n * HP + j)[:, None] * CP + c[None, :], sum_weights[n])


@triton.jit
def _nca_perceive_bwd_kernel__depthwise(
    p_d_y,
    p_d_seen,
    p_filters,
    D,
    H,
    W,
    LD,
    NUM_TILES,
    Y_STRIDE,
    C: tl.constexpr,
    CP: tl.constexpr,
    F: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    PADDING: tl.constexpr,
    ENTRIES_D: tl.constexpr,
    ENTRIES_H: tl.constexpr,
    ENTRIES_W: tl.constexpr,
):
    """d_seen[i] += sum over filters f, taps k, padded positions p that show i of filter[f, k] d_y[f, p - k + K//2].

    In gather form: p = i for all cells (marching), then, in tiles and planes near a face, the rest of `pad_entry`.
    Grid: samples * tiles.
    """
    BM: tl.constexpr = TH * TW
    b = tl.program_id(0) // NUM_TILES
    d0, h0, w0 = tile_start(tl.program_id(0) % NUM_TILES, H, W, 0, LD, TH, TW)

    c = tl.arange(0, CP)
    cell = tl.arange(0, BM)
    h, w = h0 + cell // TW, w0 + cell % TW
    in_plane = (h < H) & (w < W)
    plane = tl.cast(H, tl.int64) * W * C
    o_sample = tl.cast(b, tl.int64) * D * plane
    o_store = (h * W + w)[:, None] * C + c[None, :]
    m_store = in_plane[:, None] & (c < C)[None, :]
    HAS_EXTRAS: tl.constexpr = (ENTRIES_D > KD) or (ENTRIES_H > KH) or (ENTRIES_W > KW)
    at_edge = (h0 <= KH // 2) | (h0 + TH >= H - KH // 2) | (w0 <= KW // 2) | (w0 + TW >= W - KW // 2)

    sums = zeros(KD, BM, CP)
    nothing = tl.zeros((BM, CP), tl.float32)
    for p in range(d0 - KD // 2, tl.minimum(d0 + LD, D) + KD // 2):
        m_d = in_plane & pad_shows(h * 0 + p, D, "zeros")
        for f in range(F):
            p_plane = p_d_y + tl.cast(Y_STRIDE, tl.int64) * f + o_sample + plane * p
            for kh in range(KH):
                i_h = h - (kh - KH // 2)
                m_row = m_d & pad_shows(i_h, H, "zeros")
                for kw in tl.static_range(KW):
                    i_w = w - (kw - KW // 2)
                    d_y = load_cells(p_plane, i_h * W + i_w, m_row & pad_shows(i_w, W, "zeros"), C, CP, False)
                    added = ()
                    for s in tl.static_range(KD):
                        tap = ((f * KD + s) * KH + kh) * KW + kw
                        added = added + (sums[s] + d_y * tl.load(p_filters + tap * CP + c)[None, :],)
                    sums = added
        d = p - KD // 2
        if d >= d0:
            d_seen = sums[0]
            if HAS_EXTRAS:  # noqa: SIM102  a constant: together with the next it would not be
                if at_edge | (d <= KD // 2) | (d >= D - 1 - KD // 2):
                    for e_d in range(ENTRIES_D):
                        i_d, tap_d, shown_d = pad_entry(h * 0 + d, e_d, D, KD, PADDING)
                        p_d_y_d = p_d_y + o_sample + i_d.to(tl.int64)[:, None] * plane
                        for e_h in range(ENTRIES_H):
                            i_h, tap_h, shown_h = pad_entry(h, e_h, H, KH, PADDING)
                            shown_h = shown_h & shown_d & in_plane
                            if tl.sum(shown_h.to(tl.int32), 0) > 0:
                                # With e_d and e_h of the cells themselves, only the extra entries along W are left.
                                is_done = (e_d < KD) & (e_h < KH)
                                for e_w in range(KW if is_done else 0, ENTRIES_W):
                                    i_w, tap_w, shown_w = pad_entry(w, e_w, W, KW, PADDING)
                                    shown = (shown_h & shown_w)[:, None] & (c < C)[None, :]
                                    o_source = (i_h * W + i_w)[:, None] * C + c[None, :]
                                    for f in range(F):
                                        p_y = p_d_y_d + tl.cast(Y_STRIDE, tl.int64) * f + o_source
                                        tap = ((f * KD + tap_d) * KH + tap_h) * KW + tap_w
                                        weight = tl.load(p_filters + tap * CP + c)[None, :]
                                        d_seen += tl.load(p_y, mask=shown, other=0.0) * weight
            p_out = p_d_seen + o_sample + plane * d + o_store
            tl.store(p_out, tl.load(p_out, mask=m_store, other=0.0) + d_seen, mask=m_store)
        sums = rotate(sums, nothing, 1, KD)


@triton.jit
def _nca_filters_bwd_kernel__depthwise(
    p_seen,
    p_d_y,
    p_parts,
    D,
    H,
    W,
    LD,
    NUM_TILES,
    ALL_TILES,
    Y_STRIDE,
    C: tl.constexpr,
    CP: tl.constexpr,
    F: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    PADDING: tl.constexpr,
):
    """d_filter[f, k] = sum over cells i of d_y[f, i] seen[pad(i + k - K//2)], for one f, kh, kw and every kd.

    The KD planes of d_y that see a source plane rotate. parts [programs, F, KD, KH, KW, CP]. Grid: (programs,
    F * KH * KW); a program has every programs-th tile of the batch.
    """
    BM: tl.constexpr = TH * TW
    f = tl.program_id(1) // (KH * KW)
    kh, kw = tl.program_id(1) // KW % KH, tl.program_id(1) % KW

    c = tl.arange(0, CP)
    cell = tl.arange(0, BM)
    plane = tl.cast(H, tl.int64) * W * C
    p_d_y += tl.cast(Y_STRIDE, tl.int64) * f

    sums = zeros(KD, BM, CP)
    for tile in range(tl.program_id(0), ALL_TILES, tl.num_programs(0)):
        o_sample = tl.cast(tile // NUM_TILES, tl.int64) * D * plane
        d0, h0, w0 = tile_start(tile % NUM_TILES, H, W, 0, LD, TH, TW)
        d1 = tl.minimum(d0 + LD, D)
        h, w = h0 + cell // TW, w0 + cell % TW
        in_plane = (h < H) & (w < W)
        i_h, i_w = h + (kh - KH // 2), w + (kw - KW // 2)
        shows = in_plane & pad_shows(i_h, H, PADDING) & pad_shows(i_w, W, PADDING)
        o_seen = pad_index(i_h, H, PADDING) * W + pad_index(i_w, W, PADDING)
        # planes[s] is plane p - KD // 2 + s of d_y: it sees source plane p through tap KD - 1 - s.
        planes = zeros(KD, BM, CP)
        for p in range(d0 - KD // 2, d1 + KD // 2):
            newest = p + KD // 2
            m_newest = in_plane & (h * 0 + newest < d1) & (h * 0 + newest >= d0)
            d_y = load_cells(p_d_y + o_sample + plane * newest, h * W + w, m_newest, C, CP, False)
            planes = rotate(planes, d_y, 1, KD)
            m_seen = shows & pad_shows(h * 0 + p, D, PADDING)
            o_plane = o_sample + plane * pad_index(p, D, PADDING)
            seen = load_cells(p_seen + o_plane, o_seen, m_seen, C, CP, False)
            added = ()
            for s in tl.static_range(KD):
                added = added + (sums[s] + seen * planes[KD - 1 - s],)
            sums = added

    for s in tl.static_range(KD):
        tap = ((f * KD + s) * KH + kh) * KW + kw
        o_part = (tl.program_id(0).to(tl.int64) * (F * KD * KH * KW) + tap) * CP
        tl.store(p_parts + o_part + c, tl.sum(sums[s], 0))
