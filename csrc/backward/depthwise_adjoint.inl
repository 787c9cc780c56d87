// The adjoint of a depthwise convolution at all cells, in gather form, so that no row has two writers.

struct DepthwiseAdjoint {
  const Grid& grid;
  const StateGradients& gradients;
  float* flipped;      // the filters' taps in reverse order
  int *pre_d, *pre_h;  // which padded indices read an index: a count and the indices, for each

  DepthwiseAdjoint(Grid& g, const Perceiver& perceiver, const StateGradients& state_gradients)
      : grid(g), gradients(state_gradients) {
    const int taps = g.tap_count * g.kw, Cp = g.Cp;
    pre_d = preimages(g, g.D, g.pd, g.map_d), pre_h = preimages(g, g.H, g.ph, g.map_h);
    flipped = g.take<float>(g.dense ? 0 : int64_t{taps} * perceiver.y_cell);
    for (int f = 0; !g.dense && f < g.F; ++f)
      for (int t = 0; t < taps; ++t)
        copy(perceiver.filter(f) + int64_t{taps - 1 - t} * Cp, flipped + (int64_t{f} * taps + t) * Cp, Cp);
  }

  // For every i in [0, n): the number of padded indices that map to it, then those indices.
  static int* preimages(Grid& grid, int n, int p, const int* map) {
    const int width = n + 2 * p + 1;
    int* lists = grid.take_zeros<int>(int64_t{n} * width);
    for (int i = -p; i < n + p; ++i)
      if (map[i] >= 0) {
        int* list = lists + int64_t{map[i]} * width;
        list[++list[0]] = i;
      }
    return lists;
  }

  // One row: what all filters that read it send back is added to the gradient of what is perceived from, and the row's
  // share to the filters' own gradients.
  void sweep_row(Scratch& s, GradientSums& sum, int64_t row, const float* source) const {
    const int W = grid.W, Cp = grid.Cp, d_y_cell = gradients.d_y_cell;
    const float* d_y = gradients.d_y_at(row, 0);
    adjoint_row(s, row);
    find_tap_rows(grid, source, row, s.tap_rows);
    for (int f = 0; f < grid.F; ++f)
      depthwise_grad(s.tap_rows, grid.tap_count, grid.kw, Cp, d_y + f * Cp, d_y_cell, W, Cp,
                     sum.perceive_w.partial + int64_t{f} * grid.tap_count * grid.run);
    add_column_sums(d_y, d_y_cell, W, d_y_cell, sum.perceive_b.partial);
    sum.count_filters(W);
  }

  // Through every padded row that maps to this one.
  void adjoint_row(Scratch& s, int64_t row) const {
    const int64_t sample = row / grid.plane;
    const int W = grid.W, Cp = grid.Cp, pw = grid.pw;
    const int* list_d = pre_d + row % grid.plane / grid.H * (grid.D + 2 * grid.pd + 1);
    const int* list_h = pre_h + row % grid.H * (grid.H + 2 * grid.ph + 1);
    float* dx = gradients.d_source + row * W * Cp;
    for (int a = 1; a <= list_d[0]; ++a)
      for (int b = 1; b <= list_h[0]; ++b) {
        find_d_y_rows(sample, list_d[a], list_h[b], s.tap_rows);
        convolve(s, W + 2 * pw);
        for (int w = -pw; w < W + pw; ++w) {
          if (grid.map_w[w] < 0) continue;
          add(s.pad_row + int64_t{w + pw} * Cp, dx + int64_t{grid.map_w[w]} * Cp, Cp);
        }
      }
  }
  void find_d_y_rows(int64_t sample, int d, int y, const float** taps) const {
    for (int i = -grid.pd; i <= grid.pd; ++i)
      for (int j = -grid.ph; j <= grid.ph; ++j) {
        const int dd = d + i, yy = y + j;
        const bool inside = dd >= 0 && dd < grid.D && yy >= 0 && yy < grid.H;
        *taps++ = inside ? gradients.d_y_row((sample * grid.D + dd) * grid.H + yy) : grid.zero_row;
      }
  }
  // s.pad_row[w] = adjoint of the convolution at padded cell w - pad, from the rows of d_y in s.tap_rows.
  void convolve(Scratch& s, int width) const {
    const int Cp = grid.Cp, taps = grid.tap_count;
    for (int f = 0; f < grid.F; ++f) {
      for (int r = 0; r < taps; ++r) s.cell_taps[r] = s.tap_rows[r] + f * Cp;
      depthwise_row({s.cell_taps, taps, grid.kw, gradients.d_y_cell, flipped + int64_t{f} * taps * grid.run, nullptr,
                     Cp, f > 0, s.pad_row, Cp},
                    width);
    }
  }
};
