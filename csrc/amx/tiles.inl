// Products of bfloat16 numbers on the tiles of Intel AMX, summed in float32.
// A tile is 16 rows of 64 bytes; one instruction adds to 16 x 16 floats the product of 16 x 32 and 32 x 16 numbers, the
// latter stored as 16 rows of 16 pairs (k, k + 1). Tiles 0-3 hold the sums, 4-5 the left factor, 6-7 the right one.

typedef uint16_t bf16;
typedef uint16_t half_vector __attribute__((vector_size(32), may_alias, aligned(2)));
typedef uint16_t whole_vector __attribute__((vector_size(64), may_alias, aligned(2)));
typedef uint32_t word_vector __attribute__((vector_size(64)));

constexpr int kTile = 16;       // rows, and columns of sums
constexpr int kTileDepth = 32;  // products summed by one instruction
constexpr int kBlock = 2 * kTile;

// Vectors of bfloat16.

// n a multiple of 16
NCA_INLINE void copy(const bf16* from, bf16* to, int n) {
  int i = 0;
  for (; i + 32 <= n; i += 32) *(whole_vector*)(to + i) = *(const whole_vector*)(from + i);
  if (i < n) *(half_vector*)(to + i) = *(const half_vector*)(from + i);
}
NCA_INLINE vf load_masked(__mmask16 mask, const float* from) { return (vf)_mm512_maskz_loadu_ps(mask, from); }
NCA_INLINE vf widen(const bf16* from) {
  return (vf)(__builtin_convertvector(*(const half_vector*)from, word_vector) << 16);
}
NCA_INLINE void store_rounded(vf v, bf16* to) { *(half_vector*)to = (half_vector)_mm512_cvtneps_pbh((__m512)v); }
NCA_INLINE void store_rounded(vf low, vf high, bf16* to) {
  *(whole_vector*)to = (whole_vector)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}
NCA_INLINE void store_rounded(vf v, __mmask16 mask, bf16* to) {
  _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Of the calling thread. As an operand of the instruction the stores into `config` cannot be dropped, which GCC 12 does
// with those that only feed _tile_loadconfig.
NCA_INLINE void configure_tiles() {
  TileConfig config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = kTile;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}
NCA_INLINE void release_tiles() { __asm__ volatile("tilerelease"); }

// GCC's own intrinsics do not say that they touch memory.
template <int kTo>
NCA_INLINE void load_tile(const void* from, int64_t row_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(kTo) : "memory");
}
template <int kFrom>
NCA_INLINE void store_tile(void* to, int64_t row_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(kFrom) : "memory");
}
template <int kSum, int kLeft, int kRight>
NCA_INLINE void multiply_add() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

// A [depth][columns] matrix as tiles, those of 16 columns one after the other; and what is added to each column.
struct TileMatrix {
  bf16* data;
  float* bias;
  __mmask16* is_used;  // [columns / kTile]: what pads the columns gives 0, even where an input is infinite
  int depth, columns;  // multiples of kTileDepth and kTile

  void set(int k, int j, float value) const {
    const int64_t tile = int64_t{j / kTile} * depth + k / kTileDepth * kTileDepth;
    data[(tile + k % kTileDepth / 2 * 2) * kTile + j % kTile * 2 + k % 2] = float_to_bf16(value);
  }
};

// sums[kBlock][kBlock] = bias + a[kBlock][depth] b, for kColumns tiles of columns.
template <int kColumns>
NCA_INLINE void multiply_block(const bf16* a, int64_t a_stride, const TileMatrix& matrix, int j, float* sums) {
  const int64_t a_bytes = a_stride * sizeof(bf16), b_tile = int64_t{kTile} * matrix.depth;
  const bf16 *low = a, *high = a + kTile * a_stride, *b = matrix.data + int64_t{j} * matrix.depth;
  const float* bias = matrix.bias + j;
  // Rows that are 0 bytes apart: every one is the bias.
  load_tile<0>(bias, 0);
  load_tile<2>(bias, 0);
  if constexpr (kColumns > 1) {
    load_tile<1>(bias + kTile, 0);
    load_tile<3>(bias + kTile, 0);
  }
  for (int k = 0; k < matrix.depth; k += kTileDepth, low += kTileDepth, high += kTileDepth, b += kTileDepth * kTile) {
    load_tile<4>(low, a_bytes);
    load_tile<6>(b, 64);
    multiply_add<0, 4, 6>();
    load_tile<5>(high, a_bytes);
    multiply_add<2, 5, 6>();
    if constexpr (kColumns > 1) {
      load_tile<7>(b + b_tile, 64);
      multiply_add<1, 4, 7>();
      multiply_add<3, 5, 7>();
    }
  }
  constexpr int64_t kRowBytes = kBlock * sizeof(float);
  store_tile<0>(sums, kRowBytes);
  store_tile<2>(sums + kTile * kBlock, kRowBytes);
  if constexpr (kColumns > 1) {
    store_tile<1>(sums + kTile, kRowBytes);
    store_tile<3>(sums + kTile * kBlock + kTile, kRowBytes);
  }
}

// finish(row, column, values of 16 or two times 16 columns) for every row of bias + a[m][depth] b; rows up to the next
// multiple of kBlock are read and given to `finish`.
template <class Finish>
static void tile_product(const bf16* a, int64_t a_stride, const TileMatrix& b, int m, const Finish& finish) {
  alignas(64) float sums[kBlock * kBlock];
  for (int j = 0; j < b.columns; j += kBlock)
    for (int i = 0; i < m; i += kBlock)
      if (b.columns - j >= kBlock) {
        multiply_block<2>(a + i * a_stride, a_stride, b, j, sums);
        const __mmask16 low = b.is_used[j / kTile], high = b.is_used[j / kTile + 1];
        for (int r = 0; r < kBlock; ++r)
          finish(i + r, j, load_masked(low, sums + r * kBlock), load_masked(high, sums + r * kBlock + kTile));
      } else {
        multiply_block<1>(a + i * a_stride, a_stride, b, j, sums);
        for (int r = 0; r < kBlock; ++r) finish(i + r, j, load_masked(b.is_used[j / kTile], sums + r * kBlock));
      }
}
