"""Few channels with a norm: from the partial sums of a pass over cells to what the next pass reads, in float64.

Shapes as in `kernels_small.py`; stats [groups, 2 h + V] is (mean of u, its biased variance, mean of v). Sums run over
blocks of ROWS partial sums in their order, then over a block: always in the same order. j: BLOCK hidden units.
"""

import triton
import triton.language as tl


@triton.jit
def _load(p, offset, mask):
    """float64; zero where mask is false."""
    return tl.load(p + offset, mask=mask, other=0.0).to(tl.float64)


@triton.jit
def _load_stats(p_stats, g, j, HIDDEN: tl.constexpr, FEATURES: tl.constexpr, EPS: tl.constexpr):
    """Mean and 1 / standard deviation of the hidden units j of group g; 0 and 0 beyond HIDDEN."""
    p_row = p_stats + g * (2 * HIDDEN + FEATURES)
    rstd = 1.0 / tl.sqrt(_load(p_row, HIDDEN + j, j < HIDDEN) + EPS)
    return _load(p_row, j, j < HIDDEN), tl.where(j < HIDDEN, rstd, 0.0)


@triton.jit
def _load_affine(p_norm_weight, p_norm_bias, p_scale, p_shift, b, j, HIDDEN: tl.constexpr, MODULATED: tl.constexpr):
    """Norm and modulation together: factor and shift of the normalised hidden units j of sample b."""
    factor, shift = _load(p_norm_weight, j, j < HIDDEN), _load(p_norm_bias, j, j < HIDDEN)
    if MODULATED:
        scale = _load(p_scale, b * HIDDEN + j, j < HIDDEN)
        return factor * scale, shift * scale + _load(p_shift, b * HIDDEN + j, j < HIDDEN)
    return factor, shift


@triton.jit(do_not_specialize=["PARTS"])
def _nca_norm_fwd_kernel__combine(
    p_parts, p_stats, PARTS, C: tl.constexpr, CP: tl.constexpr, F: tl.constexpr, HIDDEN: tl.constexpr,
    HP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The stats of a group from its PARTS rows of `_nca_stats_fwd_kernel__small`. j numbers features, too.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    Grid: (groups, blocks of hidden units or of features, whichever are more).
    """
    WIDTH: tl.constexpr = 1 + 3 * HP + (1 + F) * CP
    FEATURES: tl.constexpr = (1 + F) * C
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = 1 + 3 * HP + j // C * CP + j % C
    rows = tl.arange(0, ROWS)
    p_parts += tl.program_id(0).to(tl.int64) * PARTS * WIDTH

    sum_count = tl.zeros((ROWS,), tl.float64)
    sum_u, sum_v = tl.zeros((ROWS, BLOCK), tl.float64), tl.zeros((ROWS, BLOCK), tl.float64)
    for first in range(0, PARTS, ROWS):
        exists = first + rows < PARTS
        offset = ((first + rows).to(tl.int64) * WIDTH)[:, None]
        m_hidden = exists[:, None] & (j < HIDDEN)[None, :]
        count = _load(p_parts, (first + rows).to(tl.int64) * WIDTH, exists)
        shift = _load(p_parts, offset + 1 + j[None, :], m_hidden)
        sum_count += count
        sum_u += count[:, None] * shift + _load(p_parts, offset + 1 + HP + j[None, :], m_hidden)
        sum_v += _load(p_parts, offset + place[None, :], exists[:, None] & (j < FEATURES)[None, :])
    total = tl.sum(sum_count, 0)
    mean = tl.sum(sum_u, 0) / total

    squares = tl.zeros((ROWS, BLOCK), tl.float64)
    for first in range(0, PARTS, ROWS):
        exists = first + rows < PARTS
        offset = ((first + rows).to(tl.int64) * WIDTH)[:, None]
        m_hidden = exists[:, None] & (j < HIDDEN)[None, :]
        count = tl.where(exists, _load(p_parts, (first + rows).to(tl.int64) * WIDTH, exists), 1.0)[:, None]
        part_u = _load(p_parts, offset + 1 + HP + j[None, :], m_hidden)
        part_uu = _load(p_parts, offset + 1 + 2 * HP + j[None, :], m_hidden)
        away = _load(p_parts, offset + 1 + j[None, :], m_hidden) + part_u / count - mean[None, :]
        squares += tl.where(m_hidden, part_uu - part_u * part_u / count + count * away * away, 0.0)

    p_row = p_stats + tl.program_id(0) * (2 * HIDDEN + FEATURES)
    tl.store(p_row + j, mean, mask=j < HIDDEN)
    tl.store(p_row + HIDDEN + j, tl.sum(squares, 0) / total, mask=j < HIDDEN)
    tl.store(p_row + 2 * HIDDEN + j, tl.sum(sum_v, 0) / total, mask=j < FEATURES)


@triton.jit
def _nca_norm_fwd_kernel__fold(
    p_stats, p_norm_weight, p_norm_bias, p_scale, p_shift, p_w0, p_folded, p_b0, C: tl.constexpr, CP: tl.constexpr,
    F: tl.constexpr, HIDDEN: tl.constexpr, HP: tl.constexpr, MODULATED: tl.constexpr, BY_SAMPLE: tl.constexpr,
    EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """folded [S, 1 + F, CP, HP] and b0 [S, HP]: v @ folded + b0 is the hidden layer, normalised and modulated.

    BY_SAMPLE: each sample has its own statistics. Grid: (S, HP / BLOCK), S one or the number of samples.
    """
    s = tl.program_id(0)
    j, c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, CP)
    mean, rstd = _load_stats(p_stats, s if BY_SAMPLE else 0, j, HIDDEN, (1 + F) * C, EPS)
    factor, shift = _load_affine(p_norm_weight, p_norm_bias, p_scale, p_shift, s, j, HIDDEN, MODULATED)
    total = factor * rstd
    tl.store(p_b0 + s * HP + j, (shift - total * mean).to(tl.float32))
    for n in tl.static_range(1 + F):
        offset = (n * CP + c)[:, None] * HP + j[None, :]
        weights = tl.load(p_w0 + offset) * total.to(tl.float32)[None, :]
        tl.store(p_folded + s * ((1 + F) * CP * HP) + offset, weights)


@triton.jit
def _nca_norm_bwd_kernel__fold(
    p_stats, p_norm_weight, p_norm_bias, p_scale, p_shift, p_w0, p_folded, p_vectors, p_center, C: tl.constexpr,
    CP: tl.constexpr, F: tl.constexpr, HIDDEN: tl.constexpr, HP: tl.constexpr, MODULATED: tl.constexpr,
    BY_SAMPLE: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What `_nca_cells_bwd_kernel__small` reads: folded = w0 rstd, center, and b0, a, s of vectors; c1 = c2 = 0.

    Grid: (B, HP / BLOCK); without BY_SAMPLE all write the same numbers to the one copy of folded.
    """
    b = tl.program_id(0)
    g = b if BY_SAMPLE else 0
    FEATURES: tl.constexpr = (1 + F) * C
    j, c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, CP)
    mean, rstd = _load_stats(p_stats, g, j, HIDDEN, FEATURES, EPS)
    factor, shift = _load_affine(p_norm_weight, p_norm_bias, p_scale, p_shift, b, j, HIDDEN, MODULATED)
    at_center = tl.zeros((BLOCK,), tl.float64)
    for n in tl.static_range(1 + F):
        center = _load(p_stats, g * (2 * HIDDEN + FEATURES) + 2 * HIDDEN + n * C + c, c < C).to(tl.float32)
        tl.store(p_center + (b * (1 + F) + n) * CP + c, center)
        offset = (n * CP + c)[:, None] * HP + j[None, :]
        weights = tl.load(p_w0 + offset)
        at_center += tl.sum(center.to(tl.float64)[:, None] * weights.to(tl.float64), 0)
        tl.store(p_folded + g * ((1 + F) * CP * HP) + offset, weights * rstd.to(tl.float32)[None, :])
    p_row = p_vectors + b * 5 * HP + j
    tl.store(p_row, (rstd * (at_center - mean)).to(tl.float32))
    tl.store(p_row + HP, factor.to(tl.float32))
    tl.store(p_row + 2 * HP, shift.to(tl.float32))
    tl.store(p_row + 3 * HP, tl.zeros((BLOCK,), tl.float32))
    tl.store(p_row + 4 * HP, tl.zeros((BLOCK,), tl.float32))


@triton.jit(do_not_specialize=["SAMPLES", "PROGRAMS", "CELLS"])
def _nca_norm_bwd_kernel__means(
    p_parts, p_vectors, p_sums, SAMPLES, PROGRAMS, CELLS, CP: tl.constexpr, F: tl.constexpr, HIDDEN: tl.constexpr,
    HP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """sums [B, 2, h]: of g and of g t over each sample; and c1, c2 of vectors: the means of a g and a g t of a group.

    parts: PROGRAMS rows for each of the SAMPLES samples of a group, which has CELLS cells. Grid: (groups, HP / BLOCK).
    """
    WIDTH: tl.constexpr = 2 * HP + (2 + F) * HP * CP
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.arange(0, ROWS)
    first_b = tl.program_id(0) * SAMPLES
    mean_g, mean_gt = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for b in range(first_b, first_b + SAMPLES):
        sum_g, sum_gt = tl.zeros((ROWS, BLOCK), tl.float64), tl.zeros((ROWS, BLOCK), tl.float64)
        for first in range(0, PROGRAMS, ROWS):
            mask = (first + rows < PROGRAMS)[:, None] & (j < HIDDEN)[None, :]
            offset = ((b * PROGRAMS + first + rows).to(tl.int64) * WIDTH)[:, None] + j[None, :]
            sum_g += _load(p_parts, offset, mask)
            sum_gt += _load(p_parts, offset + HP, mask)
        g, gt = tl.sum(sum_g, 0), tl.sum(sum_gt, 0)
        tl.store(p_sums + b * 2 * HIDDEN + j, g, mask=j < HIDDEN)
        tl.store(p_sums + (b * 2 + 1) * HIDDEN + j, gt, mask=j < HIDDEN)
        a = tl.load(p_vectors + (b * 5 + 1) * HP + j).to(tl.float64)
        mean_g += a * g / CELLS
        mean_gt += a * gt / CELLS
    for b in range(first_b, first_b + SAMPLES):
        tl.store(p_vectors + (b * 5 + 3) * HP + j, mean_g.to(tl.float32))
        tl.store(p_vectors + (b * 5 + 4) * HP + j, mean_gt.to(tl.float32))
