// Depthwise convolution of a row of cells, and the gradients of its filters. A row is W + 2*pad_w cells of `channels`
// floats; the D and H neighbours are reached through row pointers.
// kCell is the distance between cells where it is known when compiling (16 channels, one filter), else 0: with it the
// addresses of a block are constants, and the loads of a block need two registers instead of twenty.

// out[w][c] (+)= bias + sum over tap rows r and taps e of weight[r][e][c] * rows[r][w + e][c], for CB cells of one
// vector of channels. Each input is loaded once and used for all kTaps outputs it reaches.
template <int kTaps, int kCell, int CB>
NCA_INLINE void depthwise_block(const float* const* rows, int tap_rows, int64_t offset, int64_t any_cell,
                                const float* weight, int64_t weight_cell, vf start, bool accumulate, float* out,
                                int64_t any_out_cell) {
  const int64_t cell = kCell > 0 ? kCell : any_cell, out_cell = kCell > 0 ? kCell : any_out_cell;
  vf acc[CB];
#pragma GCC unroll 16
  for (int i = 0; i < CB; ++i) acc[i] = accumulate ? load(out + i * out_cell) : start;
  for (int r = 0; r < tap_rows; ++r) {
    const float* x = opaque(rows[r] + offset);
    vf w[kTaps];
#pragma GCC unroll 8
    for (int e = 0; e < kTaps; ++e) w[e] = load(weight + (r * kTaps + e) * weight_cell);
#pragma GCC unroll 32
    for (int i = 0; i < CB + kTaps - 1; ++i) {
      const vf v = in_register(load(x + i * cell));
#pragma GCC unroll 8
      for (int e = 0; e < kTaps; ++e)
        if (i - e >= 0 && i - e < CB) acc[i - e] += w[e] * v;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < CB; ++i) store(out + i * out_cell, acc[i]);
}

// The same for any number of taps, one cell at a time.
NCA_INLINE void depthwise_cell(const float* const* rows, int tap_rows, int taps, int64_t offset, int64_t cell,
                               const float* weight, int64_t weight_cell, vf start, bool accumulate, float* out) {
  vf acc = accumulate ? load(out) : start;
  for (int r = 0; r < tap_rows; ++r)
    for (int e = 0; e < taps; ++e)
      acc += load(weight + (r * taps + e) * weight_cell) * load(rows[r] + offset + e * cell);
  store(out, acc);
}

template <int n>
using Cells = std::integral_constant<int, n>;
constexpr int kConvCells = kRegisters == 32 ? (kVL == 4 ? 12 : 16) : 8;

struct DepthwiseRow {
  const float* const* rows;  // [tap_rows], leftmost tap of the first cell
  int tap_rows, taps;
  int64_t cell;         // floats from one input cell to the next
  const float* weight;  // [tap_rows][taps][channels]
  const float* bias;    // [channels], or null
  int channels;
  bool accumulate;
  float* out;
  int64_t out_cell;
};

// Not inlined into its switch, where all sizes would share one set of registers and spills.
template <int kTaps, int kCell>
static __attribute__((noinline)) void depthwise_row_cells(const DepthwiseRow& p, int n) {
  const int64_t cell = kCell > 0 ? kCell : p.cell, out_cell = kCell > 0 ? kCell : p.out_cell;
  for (int c = 0; c < p.channels; c += kVL) {
    const vf start = p.bias != nullptr ? load(p.bias + c) : vf{};
    auto block = [&](auto cells, int i) {
      depthwise_block<kTaps, kCell, cells>(p.rows, p.tap_rows, i * cell + c, cell, p.weight + c, p.channels, start,
                                           p.accumulate, p.out + i * out_cell + c, out_cell);
    };
    int i = 0;
    for (; i + kConvCells <= n; i += kConvCells) block(Cells<kConvCells>{}, i);
    // The rest of a row: a block that ends with it computes some cells twice, which is cheaper than one cell at a time.
    if (i < n && n >= kConvCells && !p.accumulate) {
      n - i <= kConvCells / 2 ? block(Cells<kConvCells / 2>{}, n - kConvCells / 2)
                              : block(Cells<kConvCells>{}, n - kConvCells);
      continue;
    }
    for (; i + 4 <= n; i += 4) block(Cells<4>{}, i);
    for (; i < n; ++i) block(Cells<1>{}, i);
  }
}

template <int kTaps>
static void depthwise_row_taps(const DepthwiseRow& p, int n) {
  p.cell == 16 && p.out_cell == 16 ? depthwise_row_cells<kTaps, 16>(p, n) : depthwise_row_cells<kTaps, 0>(p, n);
}

static void depthwise_row(const DepthwiseRow& p, int n) {
  switch (p.taps) {
    case 1:
      return depthwise_row_taps<1>(p, n);
    case 3:
      return depthwise_row_taps<3>(p, n);
    case 5:
      return depthwise_row_taps<5>(p, n);
    case 7:
      return depthwise_row_taps<7>(p, n);
  }
  for (int c = 0; c < p.channels; c += kVL) {
    const vf start = p.bias != nullptr ? load(p.bias + c) : vf{};
    for (int i = 0; i < n; ++i)
      depthwise_cell(p.rows, p.tap_rows, p.taps, i * p.cell + c, p.cell, p.weight + c, p.channels, start, p.accumulate,
                     p.out + i * p.out_cell + c);
  }
}

// d_weight[r][e][c] += sum_w d_y[w][c] * rows[r][w + e][c] for RR tap rows at once; CB gradients stay in registers.
template <int kTaps, int kCell, int RR, int CB>
NCA_INLINE void depthwise_grad_block(const float* const* rows, int64_t offset, int64_t any_cell, const float* d_y,
                                     int64_t any_d_y_cell, vf (&acc)[RR][kTaps]) {
  const int64_t cell = kCell > 0 ? kCell : any_cell, d_y_cell = kCell > 0 ? kCell : any_d_y_cell;
  vf d[CB];
#pragma GCC unroll 16
  for (int i = 0; i < CB; ++i) d[i] = load(d_y + i * d_y_cell);
#pragma GCC unroll 4
  for (int r = 0; r < RR; ++r) {
    const float* x = opaque(rows[r] + offset);
#pragma GCC unroll 16
    for (int i = 0; i < CB + kTaps - 1; ++i) {
      const vf v = in_register(load(x + i * cell));
#pragma GCC unroll 8
      for (int e = 0; e < kTaps; ++e)
        if (i - e >= 0 && i - e < CB) acc[r][e] += d[i - e] * v;
    }
  }
}

template <int kTaps, int kCell, int RR>
static void depthwise_grad_rows(const float* const* rows, int64_t cell, const float* d_y, int64_t d_y_cell, int n,
                                float* d_weight, int64_t weight_cell) {
  constexpr int CB = kRegisters == 32 ? 8 : 4;
  vf acc[RR][kTaps];
#pragma GCC unroll 4
  for (int r = 0; r < RR; ++r)
#pragma GCC unroll 8
    for (int e = 0; e < kTaps; ++e) acc[r][e] = load(d_weight + (r * kTaps + e) * weight_cell);
  int i = 0;
  for (; i + CB <= n; i += CB)
    depthwise_grad_block<kTaps, kCell, RR, CB>(rows, i * cell, cell, d_y + i * d_y_cell, d_y_cell, acc);
  for (; i < n; ++i) depthwise_grad_block<kTaps, kCell, RR, 1>(rows, i * cell, cell, d_y + i * d_y_cell, d_y_cell, acc);
#pragma GCC unroll 4
  for (int r = 0; r < RR; ++r)
#pragma GCC unroll 8
    for (int e = 0; e < kTaps; ++e) store(d_weight + (r * kTaps + e) * weight_cell, acc[r][e]);
}

template <int kTaps, int kCell>
static void depthwise_grad_cells(const float* const* rows, int tap_rows, int64_t cell, const float* d_y,
                                 int64_t d_y_cell, int n, int channels, float* d_weight) {
  constexpr int RR = kRegisters == 32 ? (kTaps <= 3 ? 3 : 2) : (kTaps <= 3 ? 2 : 1);
  for (int c = 0; c < channels; c += kVL) {
    const float* x[RR];
    auto shifted = [&](int r, int count) {
      for (int q = 0; q < count; ++q) x[q] = rows[r + q] + c;
    };
    int r = 0;
    for (; r + RR <= tap_rows; r += RR) {
      shifted(r, RR);
      depthwise_grad_rows<kTaps, kCell, RR>(x, cell, d_y + c, d_y_cell, n, d_weight + int64_t{r} * kTaps * channels + c,
                                            channels);
    }
    for (; r < tap_rows; ++r) {
      shifted(r, 1);
      depthwise_grad_rows<kTaps, kCell, 1>(x, cell, d_y + c, d_y_cell, n, d_weight + int64_t{r} * kTaps * channels + c,
                                           channels);
    }
  }
}

template <int kTaps>
static void depthwise_grad_taps(const float* const* rows, int tap_rows, int64_t cell, const float* d_y,
                                int64_t d_y_cell, int n, int channels, float* d_weight) {
  if (cell == 16 && d_y_cell == 16)
    depthwise_grad_cells<kTaps, 16>(rows, tap_rows, 16, d_y, 16, n, channels, d_weight);
  else
    depthwise_grad_cells<kTaps, 0>(rows, tap_rows, cell, d_y, d_y_cell, n, channels, d_weight);
}

static void depthwise_grad(const float* const* rows, int tap_rows, int taps, int64_t cell, const float* d_y,
                           int64_t d_y_cell, int n, int channels, float* d_weight) {
  switch (taps) {
    case 1:
      return depthwise_grad_taps<1>(rows, tap_rows, cell, d_y, d_y_cell, n, channels, d_weight);
    case 3:
      return depthwise_grad_taps<3>(rows, tap_rows, cell, d_y, d_y_cell, n, channels, d_weight);
    case 5:
      return depthwise_grad_taps<5>(rows, tap_rows, cell, d_y, d_y_cell, n, channels, d_weight);
    case 7:
      return depthwise_grad_taps<7>(rows, tap_rows, cell, d_y, d_y_cell, n, channels, d_weight);
  }
  for (int r = 0; r < tap_rows; ++r)
    for (int e = 0; e < taps; ++e)
      for (int c = 0; c < channels; c += kVL) {
        float* g = d_weight + (r * taps + e) * channels + c;
        vf acc = load(g);
        for (int i = 0; i < n; ++i) acc += load(d_y + i * d_y_cell + c) * load(rows[r] + (i + e) * cell + c);
        store(g, acc);
      }
}
