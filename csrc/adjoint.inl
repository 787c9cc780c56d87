// The adjoint of the convolution at all cells: depthwise in gather form, so that no row has two writers.

struct Adjoint : DenseAdjoint {
  bool fused;                 // dense filters without a norm: a batch goes through all of a step at once
  int64_t d_y_row_floats;     // rows of W + 4*pad cells, with zero margins of 2*pad
  float* d_y;                 // gradient of the perception, of all cells; not if fused
  float *d_state, *d_source;  // compact [cells][Cp]: gradient of the state, and of perceive_from if there is one
  float* d_next;              // if fused, the gradient of the state before: neighbours add to what a cell still reads
  float* flipped_w;           // of depthwise filters
  int *pre_d, *pre_h;         // which padded indices read an index: a count and the indices, for each

  Adjoint(const BackwardArgs& a, Workspace& w) : DenseAdjoint(a, w) {
    fused = dense && !has_norm;
    d_y_row_floats = int64_t{W + 4 * pw} * d_y_cell;
    d_y = take<float>(fused ? 0 : rows * d_y_row_floats);
    d_state = take<float>(rows * W * Cp);
    d_source = a.perceive_from != nullptr ? take<float>(rows * W * Cp) : d_state;
    d_next = fused && a.perceive_from == nullptr ? take<float>(rows * W * Cp) : d_source;
    pre_d = preimages(D, pd, map_d), pre_h = preimages(H, ph, map_h);
    if (!dense) pack_flipped();
  }

  // For every i in [0, n): the number of padded indices that map to it, then those indices.
  int* preimages(int n, int p, const int* map) {
    const int width = n + 2 * p + 1;
    int* lists = take_zeros<int>(int64_t{n} * width);
    for (int i = -p; i < n + p; ++i)
      if (map[i] >= 0) {
        int* list = lists + int64_t{map[i]} * width;
        list[++list[0]] = i;
      }
    return lists;
  }

  void pack_flipped() {
    const int taps = tap_count * kw;
    flipped_w = take<float>(int64_t{taps} * d_y_cell);
    for (int f = 0; f < F; ++f)
      for (int t = 0; t < taps; ++t)
        copy(perceive_w + (int64_t{f} * taps + taps - 1 - t) * Cp, flipped_w + (int64_t{f} * taps + t) * Cp, Cp);
  }

  // ---- filters -----------------------------------------------------------------------------------------

  void filters_sweep(Scratch& s, GradientSums& sum, Halo& halo, const float* source) const {
    for_rows([&](int64_t row) {
      const float* d_y_row = d_y + row * d_y_row_floats + int64_t{2 * pw} * d_y_cell;
      if (dense) return spread_row(s, sum, halo, row, source, d_y_row);
      adjoint_row(s, row);
      find_tap_rows(source, row, s.tap_rows);
      for (int f = 0; f < F; ++f)
        depthwise_grad(s.tap_rows, tap_count, kw, Cp, d_y_row + f * Cp, d_y_cell, W, Cp,
                       sum.perceive_w.partial + int64_t{f} * tap_count * run);
      add_column_sums(d_y_row, d_y_cell, W, d_y_cell, sum.perceive_b.partial);
      sum.count_filters(W);
    });
  }
  // All cells of a row through dense filters, by way of s.y_row, as whole tiles are read.
  void spread_row(Scratch& s, GradientSums& sum, Halo& halo, int64_t row, const float* source,
                  const float* d_y_row) const {
    find_rows(s, halo, row, source, d_source);
    for (int w0 = 0; w0 < W; w0 += kLargeBatch) {
      const int n = std::min(kLargeBatch, W - w0);
      for (int i = 0; i < n; ++i) add_cell(s, i, w0 + i);
      copy(d_y_row + int64_t{w0} * d_y_cell, s.y_row, n * d_y_cell);
      spread_batch(s, sum, s.y_row, d_y_cell, n);
    }
  }

  // d_source of one row += what all filters that read it send back, through every padded row that maps to it.
  void adjoint_row(Scratch& s, int64_t row) const {
    const int64_t sample = row / plane;
    const int d = int(row % plane / H), yy = int(row % H), width = W + 2 * pw;
    const int* list_d = pre_d + int64_t{d} * (D + 2 * pd + 1);
    const int* list_h = pre_h + int64_t{yy} * (H + 2 * ph + 1);
    for (int a = 1; a <= list_d[0]; ++a)
      for (int b = 1; b <= list_h[0]; ++b) {
        find_d_y_rows(sample, list_d[a], list_h[b], s.tap_rows);
        convolve_adjoint(s, width);
        float* dx = d_source + row * W * Cp;
        for (int w = -pw; w < W + pw; ++w) {
          if (map_w[w] < 0) continue;
          add(s.pad_row + int64_t{w + pw} * Cp, dx + int64_t{map_w[w]} * Cp, Cp);
        }
      }
  }
  void find_d_y_rows(int64_t sample, int d, int yy, const float** taps) const {
    for (int i = -pd; i <= pd; ++i)
      for (int j = -ph; j <= ph; ++j) {
        const int dd = d + i, hh = yy + j;
        const bool inside = dd >= 0 && dd < D && hh >= 0 && hh < H;
        *taps++ = inside ? d_y + ((sample * D + dd) * H + hh) * d_y_row_floats : zero_row;
      }
  }
  // s.pad_row[w] = adjoint of the convolution at padded cell w - pad, from the d_y rows in s.tap_rows.
  void convolve_adjoint(Scratch& s, int width) const {
    for (int f = 0; f < F; ++f) {
      for (int r = 0; r < tap_count; ++r) s.cell_taps[r] = s.tap_rows[r] + f * Cp;
      depthwise_row({s.cell_taps, tap_count, kw, d_y_cell, flipped_w + int64_t{f} * tap_count * run, nullptr, Cp, f > 0,
                     s.pad_row, Cp},
                    width);
    }
  }
};
