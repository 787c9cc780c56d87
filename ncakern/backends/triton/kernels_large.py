"""Any sizes, dense or depthwise filters: perception, norm statistics and the step, over all cells or a list of them.

Shapes: state [B, D, H, W, C]; FC = F * C outputs of the filters; filters [KD * KH * KW, C, FC] (dense) or [..., FC]
(depthwise); w0 [C + FC, HIDDEN], w1 [HIDDEN, C]; CP and FCP are C and FC rounded up to powers of two. Programs take
BLOCK cells, HC hidden units at a time. Of weights in two halves, for "tf32x3", the low ones come PLANE numbers later.

One sample's step, with v = (z, conv(z)) without bias, minus a constant of the sample where there is a norm:
    hat = P * (v w0) + Q,  u = G * hat + T,  state' = state + activate(u) w1 where the cell fires.
P, Q, G, T [HIDDEN] are rows of affine [B, ROWS, HIDDEN] and hold biases, norm and modulation.
"""

import triton
import triton.language as tl

from ncakern.backends.triton.common import activate, matmul, multiply, pad_index, pad_shows, to_storage

# The interpreter cannot multiply bfloat16: there, operands are rounded to it and multiplied in float32, which is what
# tensor cores do.
_IS_INTERPRETED = tl.constexpr(not isinstance(matmul, triton.runtime.JITFunction))
# Rows of affine; the backward pass has the last two, too: du = P * (G * d_u - M - N * hat).
P, Q, G, T, M, N = (tl.constexpr(i) for i in range(6))
# Arguments that follow the size of a grid: a kernel specialised by them would be compiled again for another size.
SIZES = ("CELLS", "D", "H", "W", "SPLITS")


@triton.jit
def operand(x, DTYPE: tl.constexpr):
    """x as matmul takes it: rounded to DTYPE, bfloat16 or float32."""
    x = to_storage(x.to(tl.float32), DTYPE)
    if _IS_INTERPRETED:
        x = x.to(tl.float32)
    return x


@triton.jit
def load_weights(p_weights, offset, mask, PLANE: tl.constexpr, PRECISION: tl.constexpr):
    """The weights at offset, as the pair (high, low) that matmul takes; zero where mask is false."""
    high = tl.load(p_weights + offset, mask=mask, other=0.0)
    if _IS_INTERPRETED:
        high = high.to(tl.float32)
    low = high
    if PRECISION == "tf32x3":
        low = tl.load(p_weights + PLANE + offset, mask=mask, other=0.0)
    return high, low


@triton.jit
def list_cells(p_list, p_counts, b, tile, CELLS, BLOCK: tl.constexpr, LISTED: tl.constexpr):
    """A tile of the sample's cells, of all or of the listed ones, and which of them exist."""
    i = tile * BLOCK + tl.arange(0, BLOCK)
    if LISTED:
        exists = i < tl.load(p_counts + b)
        cell = tl.load(p_list + b.to(tl.int64) * CELLS + i, mask=exists, other=0)
    else:
        exists = i < CELLS
        cell = tl.minimum(i, CELLS - 1)
    return cell, exists


@triton.jit
def tile_cells(p_list, p_counts, CELLS, BLOCK: tl.constexpr, LISTED: tl.constexpr):
    """The sample of this program, its tile as `list_cells` has it, and whether there is a cell in it."""
    num_tiles = tl.cdiv(CELLS, BLOCK)
    b, tile = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    cell, exists = list_cells(p_list, p_counts, b, tile, CELLS, BLOCK, LISTED)
    has_work = tile * BLOCK < CELLS
    if LISTED:
        has_work = tile * BLOCK < tl.load(p_counts + b)
    return b, cell, exists, has_work


@triton.jit
def cell_offsets(b, cell, CELLS, WIDTH: tl.constexpr):
    """Where the cells start in [B, CELLS, WIDTH], as a column."""
    return ((b.to(tl.int64) * CELLS + cell) * WIDTH)[:, None]


@triton.jit
def perceive(
    p_seen, p_filters, b, cell, D, H, W, C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr, FCP: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BLOCK: tl.constexpr, CT: tl.constexpr, DENSE: tl.constexpr,
    PADDING: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y [BLOCK, FCP] = conv(seen) without bias: one product per tap and CT channels, or one multiplication per tap."""
    o = tl.arange(0, FCP)
    d, h, w = cell // W // H, cell // W % H, cell % W
    p_sample = p_seen + b.to(tl.int64) * D * H * W * C
    NUM_C: tl.constexpr = (C + CT - 1) // CT if DENSE else 1
    y = tl.zeros((BLOCK, FCP), tl.float32)
    for i in tl.range(0, KD * KH * KW * NUM_C, num_stages=STAGES):
        tap = i // NUM_C
        i_d, i_h, i_w = d + (tap // (KH * KW) - KD // 2), h + (tap // KW % KH - KH // 2), w + (tap % KW - KW // 2)
        shows = pad_shows(i_d, D, PADDING) & pad_shows(i_h, H, PADDING) & pad_shows(i_w, W, PADDING)
        source = (pad_index(i_d, D, PADDING) * H + pad_index(i_h, H, PADDING)) * W + pad_index(i_w, W, PADDING)
        p_cells = p_sample + source.to(tl.int64)[:, None] * C
        if DENSE:
            c = i % NUM_C * CT + tl.arange(0, CT)
            z = tl.load(p_cells + c[None, :], mask=shows[:, None] & (c < C)[None, :], other=0.0)
            mask = (c < C)[:, None] & (o < FC)[None, :]
            offset = (tap * C + c)[:, None] * FC + o[None, :]
            high, low = load_weights(p_filters, offset, mask, KD * KH * KW * C * FC, PRECISION)
            y = matmul(operand(z, DTYPE), high, low, y, PRECISION)
        else:
            z = tl.load(p_cells + (o % C)[None, :], mask=shows[:, None] & (o < FC)[None, :], other=0.0)
            y += z.to(tl.float32) * tl.load(p_filters + tap * FC + o, mask=o < FC, other=0.0)[None, :]
    return tl.where((o < FC)[None, :], y, 0.0)  # infinity times a padded weight is not zero


@triton.jit
def load_channels(p_cells, offset, mask, C: tl.constexpr, CP: tl.constexpr):
    """float32 [BLOCK, CP]: the C numbers of each cell, zero beyond them and where mask is false."""
    c = tl.arange(0, CP)
    return tl.load(p_cells + offset + c[None, :], mask=mask[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)


@triton.jit
def centre(
    v, p_centre, b, FIRST: tl.constexpr, C: tl.constexpr, FC: tl.constexpr, LENGTH: tl.constexpr, PADDED: tl.constexpr
):
    """v [BLOCK, PADDED] minus the numbers FIRST .. FIRST + LENGTH of the sample's row of centre [B, C + FC]."""
    i = tl.arange(0, PADDED)
    return v - tl.load(p_centre + b * (C + FC) + FIRST + i, mask=i < LENGTH, other=0.0)[None, :]


@triton.jit
def load_w0(
    p_w0, i_hidden, C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr, FCP: tl.constexpr, HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """w0 for the hidden units i_hidden [HC]: the pairs of its two parts, for z and for y."""
    c, o = tl.arange(0, CP), tl.arange(0, FCP)
    is_hidden = (i_hidden < HIDDEN)[None, :]
    PLANE: tl.constexpr = (C + FC) * HIDDEN
    offset = c[:, None] * HIDDEN + i_hidden[None, :]
    z_high, z_low = load_weights(p_w0, offset, (c < C)[:, None] & is_hidden, PLANE, PRECISION)
    offset = (C + o)[:, None] * HIDDEN + i_hidden[None, :]
    y_high, y_low = load_weights(p_w0, offset, (o < FC)[:, None] & is_hidden, PLANE, PRECISION)
    return z_high, z_low, y_high, y_low


@triton.jit
def load_w1(p_w1, i_hidden, C: tl.constexpr, CP: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr):
    """w1 for the hidden units i_hidden [HC], as a pair."""
    c = tl.arange(0, CP)
    mask = (i_hidden < HIDDEN)[:, None] & (c < C)[None, :]
    return load_weights(p_w1, i_hidden[:, None] * C + c[None, :], mask, HIDDEN * C, PRECISION)


@triton.jit
def project(z, y, w0, PRECISION: tl.constexpr):
    """v w0 from v in two parts."""
    product = multiply(z, w0[0], w0[1], PRECISION)
    return matmul(y, w0[2], w0[3], product, PRECISION)


@triton.jit
def load_affine(p_affine, b, row, i_hidden, ROWS: tl.constexpr, HIDDEN: tl.constexpr):
    """A row of the sample's affine numbers, [1, HC]; zero beyond HIDDEN."""
    return tl.load(p_affine + (b * ROWS + row) * HIDDEN + i_hidden, mask=i_hidden < HIDDEN, other=0.0)[None, :]


@triton.jit(do_not_specialize=SIZES)
def _nca_perceive_fwd_kernel__cells(
    p_seen, p_y, p_filters, p_list, p_counts, CELLS, D, H, W, C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr,
    FCP: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BLOCK: tl.constexpr, CT: tl.constexpr,
    DENSE: tl.constexpr, PADDING: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, LISTED: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """y[cell] = conv(seen) without bias, y [B, CELLS, FC]: what the backward pass reads many times."""
    o = tl.arange(0, FCP)
    b, cell, exists, has_work = tile_cells(p_list, p_counts, CELLS, BLOCK, LISTED)

    if has_work:
        y = perceive(
            p_seen, p_filters, b, cell, D, H, W, C, FC, CP, FCP, KD, KH, KW, BLOCK, CT, DENSE, PADDING, DTYPE,
            PRECISION, STAGES,
        )  # fmt: skip
        mask = exists[:, None] & (o < FC)[None, :]
        tl.store(p_y + cell_offsets(b, cell, CELLS, FC) + o[None, :], to_storage(y, p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _nca_moments_fwd_kernel__cells(
    p_seen, p_centre, p_moments, p_filters, p_w0, CELLS, D, H, W, C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr,
    FCP: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
    CT: tl.constexpr, HC: tl.constexpr, DENSE: tl.constexpr, PADDING: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """moments[tile] = (mean, sum of squared deviations from it) of v w0 over the cells of a tile: [2, HIDDEN]."""
    b, cell, exists, _ = tile_cells(p_seen, p_seen, CELLS, BLOCK, False)
    count = tl.sum(exists.to(tl.float32), 0)

    z = load_channels(p_seen, cell_offsets(b, cell, CELLS, C), exists, C, CP)
    y = perceive(
        p_seen, p_filters, b, cell, D, H, W, C, FC, CP, FCP, KD, KH, KW, BLOCK, CT, DENSE, PADDING, DTYPE, PRECISION,
        STAGES,
    )  # fmt: skip
    z = operand(centre(z, p_centre, b, 0, C, FC, C, CP), DTYPE)
    y = operand(centre(y, p_centre, b, C, C, FC, FC, FCP), DTYPE)
    p_moments += tl.program_id(0).to(tl.int64) * 2 * HIDDEN
    for first in tl.range(0, HIDDEN, HC, num_stages=STAGES):
        i_hidden = first + tl.arange(0, HC)
        w0 = load_w0(p_w0, i_hidden, C, FC, CP, FCP, HIDDEN, PRECISION)
        product = project(z, y, w0, PRECISION)
        mean = tl.sum(tl.where(exists[:, None], product, 0.0), 0) / count
        deviation = tl.where(exists[:, None], product - mean[None, :], 0.0)
        tl.store(p_moments + i_hidden, mean, mask=i_hidden < HIDDEN)
        tl.store(p_moments + HIDDEN + i_hidden, tl.sum(deviation * deviation, 0), mask=i_hidden < HIDDEN)


@triton.jit(do_not_specialize=SIZES)
def _nca_step_fwd_kernel__listed(
    p_state, p_seen, p_out, p_centre, p_affine, p_filters, p_w0, p_w1, p_list, p_counts, CELLS, D, H, W,
    C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr, FCP: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, HIDDEN: tl.constexpr, FROZEN: tl.constexpr, BLOCK: tl.constexpr, CT: tl.constexpr,
    HC: tl.constexpr, SLOPE: tl.constexpr, DENSE: tl.constexpr, PADDING: tl.constexpr, HAS_NORM: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out = state + activate(G * (P * (v w0) + Q) + T) w1 at listed cells, but in the first FROZEN channels."""
    c = tl.arange(0, CP)
    b, cell, exists, has_work = tile_cells(p_list, p_counts, CELLS, BLOCK, True)

    if has_work:
        offset = cell_offsets(b, cell, CELLS, C)
        z = load_channels(p_seen, offset, exists, C, CP)
        y = perceive(
            p_seen, p_filters, b, cell, D, H, W, C, FC, CP, FCP, KD, KH, KW, BLOCK, CT, DENSE, PADDING, DTYPE,
            PRECISION, STAGES,
        )  # fmt: skip
        if HAS_NORM:
            z = centre(z, p_centre, b, 0, C, FC, C, CP)
            y = centre(y, p_centre, b, C, C, FC, FC, FCP)
        z, y = operand(z, DTYPE), operand(y, DTYPE)

        delta = tl.zeros((BLOCK, CP), tl.float32)
        for first in tl.range(0, HIDDEN, HC, num_stages=STAGES):
            i_hidden = first + tl.arange(0, HC)
            w0 = load_w0(p_w0, i_hidden, C, FC, CP, FCP, HIDDEN, PRECISION)
            product = project(z, y, w0, PRECISION)
            hat = product * load_affine(p_affine, b, P, i_hidden, 4, HIDDEN)
            hat += load_affine(p_affine, b, Q, i_hidden, 4, HIDDEN)
            u = hat * load_affine(p_affine, b, G, i_hidden, 4, HIDDEN) + load_affine(
                p_affine, b, T, i_hidden, 4, HIDDEN
            )
            active = tl.where((i_hidden < HIDDEN)[None, :], activate(u, SLOPE), 0.0)
            high, low = load_w1(p_w1, i_hidden, C, CP, HIDDEN, PRECISION)
            delta = matmul(operand(active, DTYPE), high, low, delta, PRECISION)

        mask = exists[:, None] & ((c >= FROZEN) & (c < C))[None, :]
        state = tl.load(p_state + offset + c[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(p_out + offset + c[None, :], to_storage(state + delta, p_out.dtype.element_ty), mask=mask)
