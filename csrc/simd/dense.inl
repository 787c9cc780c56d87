// Dense convolution at cells given by pointers, as one matrix product.

constexpr int kPanel = 64;  // columns of a weight panel: what a tile row sweeps while the panel sits in L1

// A [K][n] matrix cut into panels of kPanel columns, each contiguous; the last may be narrower.
struct Panels {
  const float* data;
  int K, n;
  int width(int j) const { return n - j < kPanel ? n - j : kPanel; }
  const float* at(int j, int k = 0) const { return data + int64_t{j} * K + int64_t{k} * width(j); }
};

// out[i] = bias + sum over tap rows r of taps[r][i][0 .. run) . weight[r*run ..][*]: a convolution at m cells given by
// pointers, as one matrix product. `chunk` inputs at a time keep the weights in L1.
static void dense_cells(const float* const* const* taps, int tap_rows, int run, int chunk, const Panels& weight,
                        const float* bias, float* out, int64_t out_cell, int m) {
  for (int j = 0; j < weight.n; j += kPanel) {
    const int width = weight.width(j);
    for (int r = 0; r < tap_rows; ++r)
      for (int k = 0; k < run; k += chunk) {
        const PointerRows a{taps[r], k};
        const int length = run - k < chunk ? run - k : chunk;
        const float* b = weight.at(j, r * run + k);
        if (r == 0 && k == 0)
          product<Start::kBias>(a, b, width, length, width, bias + j, out + j, out_cell, m);
        else
          product<Start::kAccumulate>(a, b, width, length, width, bias, out + j, out_cell, m);
      }
  }
}
