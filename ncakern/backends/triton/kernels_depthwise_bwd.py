"""Few channels: gradients through and of depthwise filters, all float32, d_... . Names as in `kernels_small.py`."""

import triton
import triton.language as tl

from ncakern.backends.triton.common import pad_entry, pad_index, pad_shows
from ncakern.backends.triton.march import SIZES, load_cells, rotate, tile_start, zeros


@triton.jit
def _add_plane(
    sums, p_d_y, p_filters, o_plane, Y_CELLS, h, w, m_d, H, W, C: tl.constexpr, CP: tl.constexpr, F: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
):  # fmt: skip
    """Add plane p of d_y to the KD sums, sums[s] being of plane p - KD // 2 + s; m_d: the cells of p that exist."""
    c = tl.arange(0, CP)
    for f in range(F):
        p_plane = p_d_y + tl.cast(Y_CELLS, tl.int64) * (f * C) + o_plane
        for kh in range(KH):
            i_h = h - (kh - KH // 2)
            m_row = m_d & pad_shows(i_h, H, "zeros") if KH > 1 else m_d
            for kw in tl.static_range(KW):
                i_w = w - (kw - KW // 2)
                d_y = load_cells(p_plane, i_h * W + i_w, m_row & pad_shows(i_w, W, "zeros"), C, CP, False)
                added = ()
                for s in tl.static_range(KD):
                    tap = ((f * KD + s) * KH + kh) * KW + kw
                    added = added + (sums[s] + d_y * tl.load(p_filters + tap * CP + c)[None, :],)
                sums = added
    return sums


@triton.jit
def _add_entry(
    d_seen, p_d_y, p_filters, o_source, shown, tap, TAPS: tl.constexpr, Y_CELLS, C: tl.constexpr, CP: tl.constexpr,
    F: tl.constexpr,
):  # fmt: skip
    """Add to d_seen what each filter has, at a tap, for the cells at o_source [BM, CP] of its d_y."""
    c = tl.arange(0, CP)
    for f in range(F):
        p_source = p_d_y + tl.cast(Y_CELLS, tl.int64) * (f * C) + o_source
        weight = tl.load(p_filters + (f * TAPS + tap) * CP + c)[None, :]
        d_seen += tl.load(p_source, mask=shown, other=0.0) * weight
    return d_seen


@triton.jit
def _add_edges(
    d_seen, p_d_y, p_filters, plane, Y_CELLS, d, h, w, in_plane, D, H, W, C: tl.constexpr, CP: tl.constexpr,
    F: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, PADDING: tl.constexpr,
    ENTRIES_D: tl.constexpr, ENTRIES_H: tl.constexpr, ENTRIES_W: tl.constexpr,
):  # fmt: skip
    """Add to d_seen of plane d what comes from positions outside of an axis: `pad_entry` but for p = i."""
    c = tl.arange(0, CP)
    for e_d in range(ENTRIES_D):
        i_d, tap_d, shown_d = pad_entry(h * 0 + d, e_d, D, KD, PADDING)
        p_plane = p_d_y + i_d.to(tl.int64)[:, None] * plane
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
                    tap = (tap_d * KH + tap_h) * KW + tap_w
                    d_seen = _add_entry(
                        d_seen, p_plane, p_filters, o_source, shown, tap, KD * KH * KW, Y_CELLS, C, CP, F
                    )  # fmt: skip
    return d_seen


# H is one in 2D, which leaves out a sixth of the instructions.
@triton.jit(do_not_specialize=[name for name in SIZES if name != "H"], do_not_specialize_on_alignment=["H"])
def _nca_perceive_bwd_kernel__depthwise(
    p_d_y, p_d_seen, p_filters, D, H, W, LD, NUM_TILES, Y_CELLS, C: tl.constexpr, CP: tl.constexpr, F: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, PADDING: tl.constexpr,
    ENTRIES_D: tl.constexpr, ENTRIES_H: tl.constexpr, ENTRIES_W: tl.constexpr,
):  # fmt: skip
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
    at_edge = (w0 <= KW // 2) | (w0 + TW >= W - KW // 2)
    if KH > 1:  # else, as in 2D, no position is outside along H
        at_edge = at_edge | (h0 <= KH // 2) | (h0 + TH >= H - KH // 2)

    sums = zeros(KD, BM, CP)
    nothing = tl.zeros((BM, CP), tl.float32)
    for p in range(d0 - KD // 2, tl.minimum(d0 + LD, D) + KD // 2):
        m_d = in_plane & pad_shows(h * 0 + p, D, "zeros")
        sums = _add_plane(
            sums, p_d_y, p_filters, o_sample + plane * p, Y_CELLS, h, w, m_d, H, W, C, CP, F, KD, KH, KW
        )  # fmt: skip
        d = p - KD // 2
        if d >= d0:
            d_seen = sums[0]
            if HAS_EXTRAS:  # noqa: SIM102  a constant: together with the next it would not be
                if at_edge | (d <= KD // 2) | (d >= D - 1 - KD // 2):
                    d_seen = _add_edges(
                        d_seen, p_d_y + o_sample, p_filters, plane, Y_CELLS, d, h, w, in_plane, D, H, W, C, CP, F,
                        KD, KH, KW, PADDING, ENTRIES_D, ENTRIES_H, ENTRIES_W,
                    )  # fmt: skip
            p_out = p_d_seen + o_sample + plane * d + o_store
            tl.store(p_out, tl.load(p_out, mask=m_store, other=0.0) + d_seen, mask=m_store)
        sums = rotate(sums, nothing, 1, KD)


@triton.jit(do_not_specialize=SIZES)
def _nca_filters_bwd_kernel__depthwise(
    p_seen, p_d_y, p_parts, D, H, W, LD, NUM_TILES, ALL_TILES, Y_CELLS, C: tl.constexpr, CP: tl.constexpr,
    F: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    PADDING: tl.constexpr,
):  # fmt: skip
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
    p_d_y += tl.cast(Y_CELLS, tl.int64) * (f * C)

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
