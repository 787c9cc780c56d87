"""Depthwise perception for a kernel that marches plane by plane along D through a tile of TH x TW cells.

Every source plane is read once per tap of a plane, not once per tap of the volume: it is added to the KD output planes
that see it, which are kept in registers and rotate.
"""

import triton
import triton.language as tl

from ncakern.backends.triton.common import pad_index, pad_shows

# Arguments that follow the size of a grid: a kernel specialised by them would be compiled again for another size.
SIZES = ("D", "H", "W", "W_START", "LD", "NUM_TILES", "ALL_TILES", "Y_CELLS")


@triton.jit
def tile_start(tile, H, W, W_START, LD, TH: tl.constexpr, TW: tl.constexpr):
    """First plane, row and column of a tile. Columns start at W_START <= 0, where a quad of a Philox call starts."""
    num_w = tl.cdiv(W - W_START, TW)
    num_h = tl.cdiv(H, TH)
    return tile // (num_w * num_h) * LD, tile // num_w % num_h * TH, W_START + tile % num_w * TW


@triton.jit
def tile_cells(tile, H, W, W_START, LD, TH: tl.constexpr, TW: tl.constexpr):
    """`tile_start`, then of the tile's cells [TH * TW]: row, column, whether the plane has it, and an offset in it."""
    d0, h0, w0 = tile_start(tile, H, W, W_START, LD, TH, TW)
    cell = tl.arange(0, TH * TW)
    h, w = h0 + cell // TW, w0 + cell % TW
    in_plane = (h < H) & (w >= 0) & (w < W)
    o_cell = tl.minimum(h, H - 1) * W + tl.minimum(tl.maximum(w, 0), W - 1)
    return d0, h0, w0, h, w, in_plane, o_cell


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tuple of COUNT float32 blocks."""
    blocks = ()
    for _ in tl.static_range(COUNT):
        blocks = blocks + (tl.zeros((ROWS, COLUMNS), tl.float32),)
    return blocks


@triton.jit
def rotate(blocks, newest, F: tl.constexpr, KD: tl.constexpr):
    """Drop the first of each filter's KD blocks and put newest last."""
    rotated = ()
    for f in tl.static_range(F):
        for s in tl.static_range(KD - 1):
            rotated = rotated + (blocks[f * KD + s + 1],)
        rotated = rotated + (newest,)
    return rotated


@triton.jit
def load_cells(p, offset, mask, C: tl.constexpr, CP: tl.constexpr, ALL: tl.constexpr):
    """float32 [BM, CP] at offset [BM] cells; zero in channels beyond C and, unless ALL, where mask is false."""
    c = tl.arange(0, CP)
    if ALL and C == CP:
        return tl.load(p + (offset[:, None] * C + c[None, :])).to(tl.float32)
    mask = mask[:, None] & (c < C)[None, :]
    return tl.load(p + (offset[:, None] * C + c[None, :]), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def add_plane(
    sums,
    p_sample,
    p_filters,
    d,
    h,
    w,
    D,
    H,
    W,
    C: tl.constexpr,
    CP: tl.constexpr,
    F: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PADDING: tl.constexpr,
):
    """Add plane d of the padded sample to the F * KD sums; sums[f * KD + s] belongs to output plane d - KD // 2 + s.

    p_filters: [F, KD, KH, KW, CP].
    """
    c = tl.arange(0, CP)
    p_plane = p_sample + tl.cast(pad_index(d, D, PADDING), tl.int64) * H * W * C
    shows_d = pad_shows(h * 0 + d, D, PADDING)
    for kh in range(KH):  # not unrolled: KH times the code spills registers
        i_h = h + (kh - KH // 2)
        row = pad_index(i_h, H, PADDING) * W
        shows_row = shows_d & pad_shows(i_h, H, PADDING)
        for kw in tl.static_range(KW):
            i_w = w + (kw - KW // 2)
            shows = shows_row & pad_shows(i_w, W, PADDING)
            x = load_cells(p_plane, row + pad_index(i_w, W, PADDING), shows, C, CP, PADDING != "zeros")
            added = ()
            for f in tl.static_range(F):
                for s in tl.static_range(KD):
                    tap = ((f * KD + KD - 1 - s) * KH + kh) * KW + kw
                    added = added + (sums[f * KD + s] + x * tl.load(p_filters + tap * CP + c)[None, :],)
            sums = added
    return sums


@triton.jit
def filter_sums(
    sums,
    p_y,
    o_plane,
    Y_CELLS,
    o_cell,
    in_plane,
    C: tl.constexpr,
    CP: tl.constexpr,
    F: tl.constexpr,
    KD: tl.constexpr,
    LOADS_Y: tl.constexpr,
    STORES_Y: tl.constexpr,
):
    """y_1 .. y_F of the complete plane: the first of each filter's sums, or what was kept in y [F, B, D, H, W, C]."""
    y = ()
    for f in tl.static_range(F):
        p_plane = p_y + tl.cast(Y_CELLS, tl.int64) * (f * C) + o_plane
        if LOADS_Y:  # noqa: SIM108  a constant: only one side is compiled
            y = y + (load_cells(p_plane, o_cell, in_plane, C, CP, True),)
        else:
            y = y + (sums[f * KD],)
        if STORES_Y:
            store_cells(p_plane, o_cell, in_plane, y[f], C, CP)
    return y


@triton.jit
def store_cells(p, offset, mask, values, C: tl.constexpr, CP: tl.constexpr):
    """Write values [BM, CP] at offset [BM] cells where mask is true; channels beyond C are dropped."""
    c = tl.arange(0, CP)
    tl.store(p + (offset[:, None] * C + c[None, :]), values, mask=mask[:, None] & (c < C)[None, :])
