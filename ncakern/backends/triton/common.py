"""What every kernel shares: the fire mask, padding, rounding to storage, products in several precisions."""

import triton
import triton.language as tl


@triton.jit
def philox(SEED, STEP, SAMPLE, row, group):
    """Four words for the cells 4 * group .. 4 * group + 3 of a row: counter (group, row, SAMPLE, STEP), key = SEED.

    row and group: int tensors of one shape, taken modulo 2**32, as are the scalars STEP and SAMPLE.
    """
    counter = group.to(tl.int64).to(tl.uint32)
    zero = counter * 0
    row = row.to(tl.int64).to(tl.uint32) + zero
    sample = tl.cast(SAMPLE, tl.int64).to(tl.uint32) + zero
    step = tl.cast(STEP, tl.int64).to(tl.uint32) + zero
    return tl.philox(tl.cast(SEED, tl.int64), counter, row, sample, step)


@triton.jit
def fires(SEED, STEP, SAMPLE, THRESHOLD, row, x):
    """Whether the cell at global index x of the global row fires; any tensors of one shape, one Philox call each."""
    word0, word1, word2, word3 = philox(SEED, STEP, SAMPLE, row, x >> 2)
    word = x & 3
    chosen = tl.where(word == 0, word0, tl.where(word == 1, word1, tl.where(word == 2, word2, word3)))
    return chosen.to(tl.uint32, bitcast=True).to(tl.int64) < tl.cast(THRESHOLD, tl.int64)


@triton.jit
def fires_in_quads(SEED, STEP, SAMPLE, THRESHOLD, row, group, NUM_CELLS: tl.constexpr):
    """`fires` for NUM_CELLS cells that come in whole groups of four: row and group are [NUM_CELLS // 4]."""
    word0, word1, word2, word3 = philox(SEED, STEP, SAMPLE, row, group)
    words = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), (NUM_CELLS,))
    return words.to(tl.uint32, bitcast=True).to(tl.int64) < tl.cast(THRESHOLD, tl.int64)


@triton.jit
def pad_index(i, SIZE, PADDING: tl.constexpr):
    """The cell that position i of the padded axis shows, clamped to [0, SIZE) so that it is always an address.

    With "zeros" a position outside shows no cell: see `pad_shows`.
    """
    if PADDING == "reflect":
        i = tl.where(i < 0, -i, i)
        i = tl.where(i >= SIZE, 2 * (SIZE - 1) - i, i)
    if PADDING == "circular":
        i = tl.where(i < 0, i + SIZE, i)
        i = tl.where(i >= SIZE, i - SIZE, i)
    return tl.minimum(tl.maximum(i, 0), SIZE - 1)


@triton.jit
def pad_shows(i, SIZE, PADDING: tl.constexpr):
    """Whether position i of the padded axis shows a cell at all."""
    if PADDING == "zeros":
        return (i >= 0) & (i < SIZE)
    return i == i


@triton.jit
def pad_entry(i, e, SIZE, K: tl.constexpr, PADDING: tl.constexpr):
    """The adjoint of padding and filtering an axis, as a list of `num_entries`: cell i's e-th (source, tap, shown).

    In the sum for i, source stands for each cell whose filter, at that tap, looked at a position that shows i. Entries
    0 to K - 1 have i itself as that position; then come those left of the axis and those right of it, which only some
    taps reach. tap is a scalar.
    """
    R: tl.constexpr = K // 2
    e = tl.cast(e, tl.int32)
    position, tap, shown = i, e, (i >= 0) & (i < SIZE)
    if R > 0 and PADDING != "zeros":
        is_extra = i * 0 + e >= K
        slot, reached = (e - K) // R, (e - K) % R
        right = slot if PADDING != "replicate" else slot // R
        tap = tl.where(e < K, e, reached + right * (R + 1))
        is_right = i * 0 + right == 1
        if PADDING == "reflect":
            extra = tl.where(is_right, 2 * (SIZE - 1) - i, -i)
            has_extra = tl.where(is_right, extra >= SIZE, extra < 0) & (extra >= -R) & (extra < SIZE + R)
        if PADDING == "circular":
            extra = tl.where(is_right, i + SIZE, i - SIZE)
            has_extra = (extra >= -R) & (extra < SIZE + R)
        if PADDING == "replicate":
            extra = tl.where(is_right, SIZE, -1 - slot % R)
            extra = tl.where(is_right, extra + slot % R, extra)
            has_extra = tl.where(is_right, i == SIZE - 1, i == 0)
        position = tl.where(is_extra, extra, i)
        shown = shown & (has_extra | (is_extra == 0))
    source = position - (tap - R)
    return source, tap, shown & (source >= 0) & (source < SIZE)


@triton.jit
def activate(z, SLOPE: tl.constexpr):
    """relu, or leaky relu with SLOPE; NaN stays NaN."""
    if SLOPE == 0.0:
        return tl.where(z < 0.0, 0.0, z)
    return tl.where(z < 0.0, SLOPE * z, z)


@triton.jit
def activate_bwd(z, d_active, SLOPE: tl.constexpr):
    """The gradient of z, from that of activate(z)."""
    return tl.where(z > 0.0, d_active, SLOPE * d_active)


# The largest number with the 10 bits of mantissa that a tensor core reads.
TF32_MAX = tl.constexpr(3.4011621342146535e38)


@triton.jit
def split(x, PRECISION: tl.constexpr):
    """x as (high, low) for `matmul`; low is used by "tf32x3" only. Split weights once, outside of loops.

    high is x rounded to what a tensor core reads, half away from zero, and finite: infinity and NaN are in low alone.
    """
    if PRECISION == "tf32x3":
        finite = tl.clamp(x, -TF32_MAX, TF32_MAX)
        high = ((finite.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
        return high, x - high
    return x, x


@triton.jit
def multiply(a, b_high, b_low, PRECISION: tl.constexpr):
    """a @ b in float32 with b from `split`. "tf32x3": three TF32 products, together nearly float32.

    Tensor cores cut off what does not fit whenever they add to a sum. So its small parts come first.
    """
    if PRECISION == "tf32x3":
        a_high, a_low = split(a, PRECISION)
        product = tl.dot(a_low, b_high, input_precision="tf32")
        product = tl.dot(a_high, b_low, product, input_precision="tf32")
        return tl.dot(a_high, b_high, product, input_precision="tf32")
    return tl.dot(a, b_high, input_precision=PRECISION)


@triton.jit
def matmul(a, b_high, b_low, acc, PRECISION: tl.constexpr):
    """acc + a @ b, as `multiply`. With "tf32x3" tensor cores do not add to acc, which grows over many blocks."""
    if PRECISION == "tf32x3":
        return acc + multiply(a, b_high, b_low, PRECISION)
    return tl.dot(a, b_high, acc, input_precision=PRECISION)


# Triton's interpreter truncates when it makes a bfloat16; hardware rounds to nearest.
_TRUNCATES = tl.constexpr(not isinstance(matmul, triton.runtime.JITFunction))


@triton.jit
def to_storage(x, DTYPE: tl.constexpr):
    """float32 rounded to the nearest value of the state's dtype, ties to even; NaN stays NaN."""
    if _TRUNCATES and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


def num_entries(kernel: int, padding: str) -> int:
    """The length of the list of `pad_entry` on an axis with a filter of that size."""
    radius = kernel // 2
    if padding == "zeros":
        return kernel
    return kernel + 2 * radius * (radius if padding == "replicate" else 1)
