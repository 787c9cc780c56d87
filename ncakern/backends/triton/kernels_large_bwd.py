"""Gradients for any sizes, in gather form: no atomics, and partial sums of weight gradients per program.

Names and shapes as in kernels_large.py; d_out [B, D, H, W, C] is float32, zero where a cell does not fire or is frozen
when it meets the network. With d_u the gradient of u and hat as in the forward pass:
    du = P * (G * d_u - M - N * hat),  M = N = 0 without a norm.
Without a norm only listed (firing) cells take part; with one, every cell feels the statistics.
"""

import triton
import triton.language as tl

from ncakern.backends.triton.common import (
    activate,
    activate_bwd,
    matmul,
    multiply,
    pad_entry,
    pad_index,
    pad_shows,
    split,
    to_storage,
)
from ncakern.backends.triton.draw import cells_fire, load_draw
from ncakern.backends.triton.kernels_large import (
    SIZES,
    G,
    M,
    N,
    P,
    Q,
    T,
    cell_offsets,
    centre,
    list_cells,
    load_affine,
    load_channels,
    load_w0,
    load_w1,
    load_weights,
    operand,
    project,
    tile_cells,
)


@triton.jit
def _transposed_matmul(a, b, acc, PRECISION: tl.constexpr):
    """acc + a^T b for two blocks with cells as rows."""
    high, low = split(b, PRECISION)
    return matmul(tl.trans(a), high, low, acc, PRECISION)


@triton.jit
def _load_output_gradient(
    p_d_out, p_draw, STEP, b, cell, exists, CELLS, H, W, C: tl.constexpr, CP: tl.constexpr, FROZEN: tl.constexpr,
    LISTED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What reaches the network of d_out: firing cells (listed ones fire) and free channels."""
    if not LISTED and CELLS > 0:  # as ever; within a condition the words of the stream take no registers of a loop
        exists = exists & cells_fire(load_draw(p_draw, STEP, b), cell, H, W)
    d_out = load_channels(p_d_out, cell_offsets(b, cell, CELLS, C), exists, C, CP)
    return operand(tl.where((tl.arange(0, CP) >= FROZEN)[None, :], d_out, 0.0), DTYPE)


@triton.jit
def _load_features(
    p_seen, p_y, p_centre, b, cell, exists, CELLS, C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr,
    FCP: tl.constexpr, HAS_NORM: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """v in two parts, from the state and the stored perception."""
    z = load_channels(p_seen, cell_offsets(b, cell, CELLS, C), exists, C, CP)
    y = load_channels(p_y, cell_offsets(b, cell, CELLS, FC), exists, FC, FCP)
    if HAS_NORM and CELLS > 0:  # as ever; within a condition the constants take no registers of a loop
        z = centre(z, p_centre, b, 0, C, FC, C, CP)
        y = centre(y, p_centre, b, C, C, FC, FC, FCP)
    return operand(z, DTYPE), operand(y, DTYPE)


@triton.jit
def _hidden_bwd(
    product, d_out, w1, p_affine, b, i_hidden, HIDDEN: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr
):
    """hat, u and d_u = (d_out w1^T) * activate'(u) for the hidden units i_hidden, from product = v w0."""
    d_active = multiply(d_out, tl.trans(w1[0]), tl.trans(w1[1]), PRECISION)
    hat = product * load_affine(p_affine, b, P, i_hidden, 6, HIDDEN) + load_affine(p_affine, b, Q, i_hidden, 6, HIDDEN)
    u = hat * load_affine(p_affine, b, G, i_hidden, 6, HIDDEN) + load_affine(p_affine, b, T, i_hidden, 6, HIDDEN)
    return hat, u, activate_bwd(u, d_active, SLOPE)


@triton.jit
def _norm_bwd(hat, d_u, exists, p_affine, b, i_hidden, HIDDEN: tl.constexpr, HAS_NORM: tl.constexpr):
    """du = P * (G * d_u - M - N * hat): the gradient of v w0."""
    du = d_u * load_affine(p_affine, b, G, i_hidden, 6, HIDDEN)
    if HAS_NORM:
        felt = load_affine(p_affine, b, M, i_hidden, 6, HIDDEN) + hat * load_affine(p_affine, b, N, i_hidden, 6, HIDDEN)
        du -= tl.where(exists[:, None], felt, 0.0)
    return du * load_affine(p_affine, b, P, i_hidden, 6, HIDDEN)


@triton.jit(do_not_specialize=["STEP", *SIZES])
def _nca_weights_bwd_kernel__hidden(
    p_seen, p_y, p_d_out, p_centre, p_affine, p_w0, p_w1, p_d_w0, p_d_w1, p_d_affine, p_list, p_counts, p_draw, STEP,
    CELLS, H, W, SPLITS, C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr, FCP: tl.constexpr,
    HIDDEN: tl.constexpr, FROZEN: tl.constexpr, BLOCK: tl.constexpr, HC: tl.constexpr, SLOPE: tl.constexpr,
    HAS_NORM: tl.constexpr, LISTED: tl.constexpr, D_AFFINE: tl.constexpr, D_W0: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sums over every SPLITS-th tile of a sample, for HC hidden units; each program has its own place for them.

    D_AFFINE: d_affine = (sum d_u, sum d_u * hat) [2, HIDDEN], d_w1 = activate(u)^T d_out [HIDDEN, C].
    D_W0: d_w0 = du^T v [HIDDEN, C + FC].
    """
    c, o = tl.arange(0, CP), tl.arange(0, FCP)
    num_chunks = tl.cdiv(HIDDEN, HC)
    part = tl.program_id(0) // num_chunks
    b, first_tile = part // SPLITS, part % SPLITS
    i_hidden = tl.program_id(0) % num_chunks * HC + tl.arange(0, HC)
    is_hidden = i_hidden < HIDDEN

    w0 = load_w0(p_w0, i_hidden, C, FC, CP, FCP, HIDDEN, PRECISION)
    w1 = load_w1(p_w1, i_hidden, C, CP, HIDDEN, PRECISION)
    sum_d_u = tl.zeros((HC,), tl.float32)
    sum_d_u_hat = tl.zeros((HC,), tl.float32)
    d_w1 = tl.zeros((HC, CP), tl.float32)
    d_w0_z = tl.zeros((HC, CP), tl.float32)
    d_w0_y = tl.zeros((HC, FCP), tl.float32)
    count = CELLS
    if LISTED:
        count = tl.load(p_counts + b)
    for tile in tl.range(first_tile, tl.cdiv(count, BLOCK), SPLITS, num_stages=STAGES):
        cell, exists = list_cells(p_list, p_counts, b, tile, CELLS, BLOCK, LISTED)
        z, y = _load_features(p_seen, p_y, p_centre, b, cell, exists, CELLS, C, FC, CP, FCP, HAS_NORM, DTYPE)
        d_out = _load_output_gradient(
            p_d_out, p_draw, STEP, b, cell, exists, CELLS, H, W, C, CP, FROZEN, LISTED, DTYPE
        )  # fmt: skip
        product = project(z, y, w0, PRECISION)
        hat, u, d_u = _hidden_bwd(product, d_out, w1, p_affine, b, i_hidden, HIDDEN, SLOPE, PRECISION)
        if D_AFFINE:
            sum_d_u += tl.sum(d_u, 0)
            sum_d_u_hat += tl.sum(d_u * hat, 0)
            d_w1 = _transposed_matmul(operand(activate(u, SLOPE), DTYPE), d_out, d_w1, PRECISION)
        if D_W0:
            du = operand(_norm_bwd(hat, d_u, exists, p_affine, b, i_hidden, HIDDEN, HAS_NORM), DTYPE)
            d_w0_z = _transposed_matmul(du, z, d_w0_z, PRECISION)
            d_w0_y = _transposed_matmul(du, y, d_w0_y, PRECISION)

    row = part.to(tl.int64) * HIDDEN + i_hidden
    if D_AFFINE:
        p_d_affine += part.to(tl.int64) * 2 * HIDDEN
        tl.store(p_d_affine + i_hidden, sum_d_u, mask=is_hidden)
        tl.store(p_d_affine + HIDDEN + i_hidden, sum_d_u_hat, mask=is_hidden)
        tl.store(p_d_w1 + row[:, None] * C + c[None, :], d_w1, mask=is_hidden[:, None] & (c < C)[None, :])
    if D_W0:
        p_row = p_d_w0 + row[:, None] * (C + FC)
        tl.store(p_row + c[None, :], d_w0_z, mask=is_hidden[:, None] & (c < C)[None, :])
        tl.store(p_row + C + o[None, :], d_w0_y, mask=is_hidden[:, None] & (o < FC)[None, :])


@triton.jit(do_not_specialize=["STEP", *SIZES])
def _nca_cells_bwd_kernel__cells(
    p_seen, p_y, p_d_out, p_d_seen, p_centre, p_affine, p_w0, p_w1, p_list, p_counts, p_draw, STEP, CELLS, H, W,
    C: tl.constexpr, FC: tl.constexpr,
    CP: tl.constexpr, FCP: tl.constexpr, HIDDEN: tl.constexpr, FROZEN: tl.constexpr, BLOCK: tl.constexpr,
    HC: tl.constexpr, SLOPE: tl.constexpr, HAS_NORM: tl.constexpr, LISTED: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(d_z, d_y) = du w0^T: d_seen += d_z, and y is replaced by d_y, at all cells or the listed ones."""
    c, o = tl.arange(0, CP), tl.arange(0, FCP)
    b, cell, exists, has_work = tile_cells(p_list, p_counts, CELLS, BLOCK, LISTED)

    if has_work:
        z, y = _load_features(p_seen, p_y, p_centre, b, cell, exists, CELLS, C, FC, CP, FCP, HAS_NORM, DTYPE)
        d_out = _load_output_gradient(
            p_d_out, p_draw, STEP, b, cell, exists, CELLS, H, W, C, CP, FROZEN, LISTED, DTYPE
        )  # fmt: skip
        d_z = tl.zeros((BLOCK, CP), tl.float32)
        d_y = tl.zeros((BLOCK, FCP), tl.float32)
        for first in tl.range(0, HIDDEN, HC, num_stages=STAGES):
            i_hidden = first + tl.arange(0, HC)
            w0 = load_w0(p_w0, i_hidden, C, FC, CP, FCP, HIDDEN, PRECISION)
            w1 = load_w1(p_w1, i_hidden, C, CP, HIDDEN, PRECISION)
            product = project(z, y, w0, PRECISION)
            hat, u, d_u = _hidden_bwd(product, d_out, w1, p_affine, b, i_hidden, HIDDEN, SLOPE, PRECISION)
            du = operand(_norm_bwd(hat, d_u, exists, p_affine, b, i_hidden, HIDDEN, HAS_NORM), DTYPE)
            d_z = matmul(du, tl.trans(w0[0]), tl.trans(w0[1]), d_z, PRECISION)
            d_y = matmul(du, tl.trans(w0[2]), tl.trans(w0[3]), d_y, PRECISION)

        mask = exists[:, None] & (c < C)[None, :]
        p_d_z = p_d_seen + cell_offsets(b, cell, CELLS, C) + c[None, :]
        tl.store(p_d_z, tl.load(p_d_z, mask=mask, other=0.0) + d_z, mask=mask)
        p_d_y = p_y + cell_offsets(b, cell, CELLS, FC) + o[None, :]
        tl.store(p_d_y, to_storage(d_y, p_y.dtype.element_ty), mask=exists[:, None] & (o < FC)[None, :])


@triton.jit
def _add_tap(
    acc, p_d_y, p_filters, tap, i_d, i_h, i_w, shown, H, W, C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr,
    FCP: tl.constexpr, PLANE: tl.constexpr, DENSE: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + d_y[i_d, i_h, i_w] filters[tap]^T where shown."""
    c, o = tl.arange(0, CP), tl.arange(0, FCP)
    offset = ((i_d * H + i_h) * W + i_w).to(tl.int64)[:, None] * FC
    if DENSE:
        d_y = tl.load(p_d_y + offset + o[None, :], mask=shown[:, None] & (o < FC)[None, :], other=0.0)
        mask = (c < C)[:, None] & (o < FC)[None, :]
        high, low = load_weights(p_filters, (tap * C + c)[:, None] * FC + o[None, :], mask, PLANE, PRECISION)
        acc = matmul(operand(d_y, DTYPE), tl.trans(high), tl.trans(low), acc, PRECISION)
    else:
        for first in tl.static_range(0, FC, C):
            weight = tl.load(p_filters + tap * FC + first + c, mask=c < C, other=0.0)
            acc += load_channels(p_d_y + first, offset, shown, C, CP) * weight[None, :]
    return acc


@triton.jit
def _any(x):
    return tl.sum(x.to(tl.int32), 0) > 0


@triton.jit
def _add_row(
    acc, p_d_y, p_filters, d, h, w, e_d, e_h, shown, D, H, W, C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr,
    FCP: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ENTRIES_W: tl.constexpr,
    DENSE: tl.constexpr, PADDING: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + what the entries e_d, e_h and any along W show from outside of some axis."""
    i_d, tap_d, shown_d = pad_entry(d, e_d, D, KD, PADDING)
    i_h, tap_h, shown_h = pad_entry(h, e_h, H, KH, PADDING)
    shown = shown & shown_d & shown_h
    # Where p is inside on the other two axes, the first entries are done already.
    first = KW if PADDING == "zeros" else tl.where((e_d < KD) & (e_h < KH), KW, 0)
    if _any(shown):
        for e_w in range(first, ENTRIES_W):
            i_w, tap_w, shown_w = pad_entry(w, e_w, W, KW, PADDING)
            shown_w = shown_w & shown
            if _any(shown_w):
                tap = (tap_d * KH + tap_h) * KW + tap_w
                acc = _add_tap(
                    acc, p_d_y, p_filters, tap, i_d, i_h, i_w, shown_w, H, W, C, FC, CP, FCP, KD * KH * KW * C * FC,
                    DENSE, DTYPE, PRECISION,
                )  # fmt: skip
    return acc


@triton.jit(do_not_specialize=SIZES)
def _nca_perceive_bwd_kernel__gather(
    p_d_y, p_d_seen, p_filters, CELLS, D, H, W, C: tl.constexpr, FC: tl.constexpr, CP: tl.constexpr, FCP: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ENTRIES_D: tl.constexpr, ENTRIES_H: tl.constexpr,
    ENTRIES_W: tl.constexpr, BLOCK: tl.constexpr, DENSE: tl.constexpr, PADDING: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """d_seen[cell] += sum of d_y[p - tap] filters[tap]^T over taps and over padded positions p that show the cell."""
    c = tl.arange(0, CP)
    b, cell, exists, _ = tile_cells(p_d_y, p_d_y, CELLS, BLOCK, False)
    d, h, w = cell // W // H, cell // W % H, cell % W
    p_sample = p_d_y + b.to(tl.int64) * CELLS * FC
    PLANE: tl.constexpr = KD * KH * KW * C * FC

    acc = tl.zeros((BLOCK, CP), tl.float32)
    for tap in tl.range(0, KD * KH * KW, num_stages=STAGES):  # p is the cell itself
        i_d, tap_d, shown_d = pad_entry(d, tap // (KH * KW), D, KD, PADDING)
        i_h, tap_h, shown_h = pad_entry(h, tap // KW % KH, H, KH, PADDING)
        i_w, tap_w, shown_w = pad_entry(w, tap % KW, W, KW, PADDING)
        shown = exists & shown_d & shown_h & shown_w
        acc = _add_tap(
            acc, p_sample, p_filters, tap, i_d, i_h, i_w, shown, H, W, C, FC, CP, FCP, PLANE, DENSE, DTYPE, PRECISION
        )  # fmt: skip
    for e_d in range(ENTRIES_D):  # p is outside on some axis
        shown_d = pad_entry(d, e_d, D, KD, PADDING)[2] & exists
        if _any(shown_d):
            for e_h in range(ENTRIES_H):
                acc = _add_row(
                    acc, p_sample, p_filters, d, h, w, e_d, e_h, shown_d, D, H, W, C, FC, CP, FCP, KD, KH, KW,
                    ENTRIES_W, DENSE, PADDING, DTYPE, PRECISION,
                )  # fmt: skip

    mask = exists[:, None] & (c < C)[None, :]
    p_d_z = p_d_seen + cell_offsets(b, cell, CELLS, C) + c[None, :]
    tl.store(p_d_z, tl.load(p_d_z, mask=mask, other=0.0) + acc, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def _nca_weights_bwd_kernel__filters(
    p_seen, p_d_y, p_d_filters, p_list, p_counts, CELLS, D, H, W, SPLITS, C: tl.constexpr, FC: tl.constexpr,
    CT: tl.constexpr, FCT: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BLOCK: tl.constexpr,
    DENSE: tl.constexpr, LISTED: tl.constexpr, PADDING: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """d_filters[part, tap] = seen[cell + tap]^T d_y[cell] over every SPLITS-th tile of a sample; CT x FCT of it.

    Depthwise: the sum of seen * d_y for each of FCT outputs.
    """
    NUM_C: tl.constexpr = (C + CT - 1) // CT if DENSE else 1
    NUM_O: tl.constexpr = (FC + FCT - 1) // FCT
    block, part = tl.program_id(0) % (NUM_O * NUM_C), tl.program_id(0) // (NUM_O * NUM_C)
    o = block % NUM_O * FCT + tl.arange(0, FCT)
    c = block // NUM_O * CT + tl.arange(0, CT)
    tap, part = part % (KD * KH * KW), part // (KD * KH * KW)
    b, first_tile = part // SPLITS, part % SPLITS
    p_sample = p_seen + b.to(tl.int64) * CELLS * C

    acc = tl.zeros((CT, FCT), tl.float32) if DENSE else tl.zeros((FCT,), tl.float32)
    count = CELLS
    if LISTED:
        count = tl.load(p_counts + b)
    for tile in tl.range(first_tile, tl.cdiv(count, BLOCK), SPLITS, num_stages=STAGES):
        cell, exists = list_cells(p_list, p_counts, b, tile, CELLS, BLOCK, LISTED)
        i_d = cell // W // H + (tap // (KH * KW) - KD // 2)
        i_h, i_w = cell // W % H + (tap // KW % KH - KH // 2), cell % W + (tap % KW - KW // 2)
        shows = exists & pad_shows(i_d, D, PADDING) & pad_shows(i_h, H, PADDING) & pad_shows(i_w, W, PADDING)
        source = (pad_index(i_d, D, PADDING) * H + pad_index(i_h, H, PADDING)) * W + pad_index(i_w, W, PADDING)
        p_cells = p_sample + source.to(tl.int64)[:, None] * C
        mask = exists[:, None] & (o < FC)[None, :]
        d_y = tl.load(p_d_y + cell_offsets(b, cell, CELLS, FC) + o[None, :], mask=mask, other=0.0)
        if DENSE:
            z = tl.load(p_cells + c[None, :], mask=shows[:, None] & (c < C)[None, :], other=0.0)
            acc = _transposed_matmul(operand(z, DTYPE), operand(d_y, DTYPE), acc, PRECISION)
        else:
            z = tl.load(p_cells + (o % C)[None, :], mask=shows[:, None] & (o < FC)[None, :], other=0.0)
            acc += tl.sum(z.to(tl.float32) * d_y.to(tl.float32), 0)

    row = part.to(tl.int64) * (KD * KH * KW) + tap
    if DENSE:
        offset = (row * C + c)[:, None] * FC + o[None, :]
        tl.store(p_d_filters + offset, acc, mask=(c < C)[:, None] & (o < FC)[None, :])
    else:
        tl.store(p_d_filters + row * FC + o, acc, mask=o < FC)
