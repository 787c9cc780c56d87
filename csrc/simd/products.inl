// Register-blocked products, which everything else is made of: A B and A^T B, and sums of columns.

enum class Start { kZero, kBias, kAccumulate };
enum class Finish { kNone, kRelu, kLeakyRelu };

// Rows of the left factor: evenly spaced, or one pointer each.
template <int kStride>
struct FixedRows {
  const float* base;
  NCA_INLINE const float* row(const FixedRows& a, int i) { return a.base + i * kStride; }
  FixedRows from(int i) const { return {base + int64_t{i} * kStride}; }
};
struct StridedRows {
  const float* base;
  int64_t stride;
  NCA_INLINE const float* row(const StridedRows& a, int i) { return a.base + i * a.stride; }
  StridedRows from(int i) const { return {base + i * stride, stride}; }
};
struct PointerRows {
  const float* const* rows;
  int64_t offset;
  NCA_INLINE const float* row(const PointerRows& a, int i) { return a.rows[i] + a.offset; }
  PointerRows from(int i) const { return {rows + i, offset}; }
};

// acc[i][j] += sum_k a[i][k] * b[k][j]
template <int MR, int NV, class Rows>
NCA_INLINE void multiply_tile(const Rows& a, const float* b, int64_t b_stride, int K, vf (&acc)[MR][NV]) {
  const float* rows[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) rows[i] = Rows::row(a, i);
  for (int k = 0; k < K; ++k, b += b_stride) {
    vf column[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) column[j] = in_register(load(b + j * kVL));
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const vf s = splat(rows[i][k]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] += s * column[j];
    }
  }
}

template <int MR, int NV, Start kStart, Finish kFinish, class Rows>
NCA_INLINE void product_tile(const Rows& a, const float* b, int64_t b_stride, int K, const float* bias, float* out,
                             int64_t out_stride) {
  if constexpr (kStart == Start::kBias) bias = opaque(bias);
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      acc[i][j] = kStart == Start::kZero   ? vf{}
                  : kStart == Start::kBias ? load(bias + j * kVL)
                                           : load(out + i * out_stride + j * kVL);
  multiply_tile<MR, NV>(a, b, b_stride, K, acc);
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      vf v = acc[i][j];
      if constexpr (kFinish == Finish::kRelu) v = activate<Activation::kRelu>(v);
      if constexpr (kFinish == Finish::kLeakyRelu) v = activate<Activation::kLeakyRelu>(v);
      store(out + i * out_stride + j * kVL, v);
    }
}

// Rows per tile for NV vectors of columns: as many accumulators as the registers hold, at least 8 chains. NEON keeps
// the factors of all rows in registers too (it multiplies by one element of a vector), so its tiles are lower.
constexpr bool kByElement = kRegisters == 32 && kVL == 4;
constexpr int tile_rows(int NV) {
  if (NV == 1) return 12;
  return kByElement ? (NV == 4 ? 4 : 6) : NV == 4 || kRegisters < 32 ? 6 : 12;
}
constexpr int kWideColumns = kRegisters == 32 ? 4 : 2;
constexpr int kRowGranule = 12;  // every tile_rows divides it; buffers have a multiple of it in rows

template <int NV, Start kStart, Finish kFinish, class Rows>
static void product_columns(const Rows& a, const float* b, int64_t b_stride, int K, const float* bias, float* out,
                            int64_t out_stride, int m) {
  constexpr int MR = tile_rows(NV);
  for (int i = 0; i < m; i += MR)
    product_tile<MR, NV, kStart, kFinish>(a.from(i), b, b_stride, K, bias, out + i * out_stride, out_stride);
}

// out[m][n] = finish(start + a[m][K] b[K][n]); n a multiple of kVL; rows up to the next multiple of kRowGranule
// are read and written.
template <Start kStart, Finish kFinish = Finish::kNone, class Rows>
static void product(const Rows& a, const float* b, int64_t b_stride, int K, int n, const float* bias, float* out,
                    int64_t out_stride, int m) {
  int j = 0;
  for (; j + kWideColumns * kVL <= n; j += kWideColumns * kVL)
    product_columns<kWideColumns, kStart, kFinish>(a, b + j, b_stride, K, bias + j, out + j, out_stride, m);
  if constexpr (kWideColumns > 2)
    for (; j + 2 * kVL <= n; j += 2 * kVL)
      product_columns<2, kStart, kFinish>(a, b + j, b_stride, K, bias + j, out + j, out_stride, m);
  for (; j < n; j += kVL) product_columns<1, kStart, kFinish>(a, b + j, b_stride, K, bias + j, out + j, out_stride, m);
}

// c[i][j] += sum_t a[t][i] * b[t][j] over m rows t, for RB rows and NV vectors of c.
template <int RB, int NV, class Rows>
NCA_INLINE void outer_tile(const Rows& a, const float* b, int64_t b_stride, int m, float* c, int64_t c_stride) {
  vf acc[RB][NV];
#pragma GCC unroll 16
  for (int i = 0; i < RB; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[i][j] = load(c + i * c_stride + j * kVL);
  for (int t = 0; t < m; ++t, b += b_stride) {
    const float* row = Rows::row(a, t);
    vf column[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) column[j] = in_register(load(b + j * kVL));
#pragma GCC unroll 16
    for (int i = 0; i < RB; ++i) {
      const vf s = splat(row[i]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] += s * column[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < RB; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(c + i * c_stride + j * kVL, acc[i][j]);
}

NCA_INLINE StridedRows columns_from(const StridedRows& a, int i) { return {a.base + i, a.stride}; }
NCA_INLINE PointerRows columns_from(const PointerRows& a, int i) { return {a.rows, a.offset + i}; }

template <int RB, class Rows>
static void outer_rows(const Rows& a, const float* b, int64_t b_stride, int m, int n, float* c, int64_t c_stride) {
  int j = 0;
  for (; j + 2 * kVL <= n; j += 2 * kVL) outer_tile<RB, 2>(a, b + j, b_stride, m, c + j, c_stride);
  for (; j < n; j += kVL) outer_tile<RB, 1>(a, b + j, b_stride, m, c + j, c_stride);
}

constexpr int kOuterRows = kRegisters == 32 ? 8 : 4;

// c[K][n] += a[m][K]^T b[m][n]; K a multiple of 4, n of kVL. With kUpper only what is needed of a symmetric
// c is computed: row i from the vector that holds column i.
template <bool kUpper = false, class Rows>
static void outer_product(const Rows& a, const float* b, int64_t b_stride, int m, int K, int n, float* c,
                          int64_t c_stride) {
  int i = 0;
  for (; i + kOuterRows <= K; i += kOuterRows) {
    const int j = kUpper ? i / kVL * kVL : 0;
    outer_rows<kOuterRows>(columns_from(a, i), b + j, b_stride, m, n - j, c + i * c_stride + j, c_stride);
  }
  for (; i < K; i += 4) {
    const int j = kUpper ? i / kVL * kVL : 0;
    outer_rows<4>(columns_from(a, i), b + j, b_stride, m, n - j, c + i * c_stride + j, c_stride);
  }
}

// total[n] += column sums of a[m][n]; four rows at a time, so that the additions do not wait for each other.
static inline void add_column_sums(const float* a, int64_t stride, int m, int n, float* total) {
  for (int j = 0; j < n; j += kVL) {
    const float* column = a + j;
    vf sum = load(total + j);
    int t = 0;
    for (; t + 4 <= m; t += 4, column += 4 * stride)
      sum += (load(column) + load(column + stride)) + (load(column + 2 * stride) + load(column + 3 * stride));
    for (; t < m; ++t, column += stride) sum += load(column);
    store(total + j, sum);
  }
}
