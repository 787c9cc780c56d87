// The adjoint of the convolution, and the gradients of its filters.

// float32 sums of one thread, moved into float64 ones before rounding can pile up.
struct Sum {
  float* partial;
  double* total;
  int64_t n;
  void fold() {
    for (int64_t i = 0; i < n; ++i) total[i] += partial[i], partial[i] = 0.0f;
  }
};

constexpr int kGradientFoldCells = 2048;

struct alignas(64) GradientSums {      // its counters change with every batch: no line is shared by threads
  Sum out_w, perceive_w, perceive_b;   // over all steps
  Sum outer, hidden;                   // sum of g v^T [hp][V] and of g [hp] of the current slot and step,
  double *outer_slots, *hidden_slots;  // where g is the gradient of the activation's input; [slots] of each
  int64_t cells_pending, filters_pending;

  void fold_cells() {
    for (Sum* s : {&out_w, &outer, &hidden}) s->fold();
    cells_pending = 0;
  }
  void fold_filters() {
    for (Sum* s : {&perceive_w, &perceive_b}) s->fold();
    filters_pending = 0;
  }
};

struct Adjoint : Engine {
  int d_y_cell;               // floats of d_y per cell
  int64_t d_y_row_floats;     // rows of W + 4*pad cells, with zero margins of 2*pad
  float* d_y;                 // gradient of the perception
  float *d_state, *d_source;  // compact [cells][Cp]: gradient of the state, and of perceive_from if there is one
  float* adjoint_w;           // flipped filters
  int *pre_d, *pre_h;         // which padded indices read an index: a count and the indices, for each

  Adjoint(const BackwardArgs& a, Workspace& w) : Engine(a, w) {
    d_y_cell = F * Cp, d_y_row_floats = int64_t{W + 4 * pw} * d_y_cell;
    d_y = take<float>(rows * d_y_row_floats);
    d_state = take<float>(rows * W * Cp);
    d_source = a.perceive_from != nullptr ? take<float>(rows * W * Cp) : d_state;
    pre_d = preimages(D, pd, map_d), pre_h = preimages(H, ph, map_h);
    pack_adjoint();
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

  void pack_adjoint() {
    const int taps = tap_count * kw;
    adjoint_w = take_zeros<float>(int64_t{taps} * d_y_cell * (dense ? Cp : 1));
    for (int t = 0; t < taps; ++t)
      for (int f = 0; f < F; ++f)
        for (int co = 0; co < Cp; ++co) {
          const int flipped = taps - 1 - t;
          if (!dense) {
            adjoint_w[(int64_t{f} * taps + t) * Cp + co] = perceive_w[(int64_t{f} * taps + flipped) * Cp + co];
            continue;
          }
          for (int ci = 0; ci < Cp; ++ci)
            *panel_entry(adjoint_w, taps * d_y_cell, Cp, t * d_y_cell + f * Cp + co, ci) =
                *panel_entry(perceive_w, taps * Cp, d_y_cell, flipped * Cp + ci, f * Cp + co);
        }
  }

  // ---- filters -----------------------------------------------------------------------------------------

  void filters_sweep(Scratch& s, GradientSums& sum, int step, const float* source) const {
    for_groups([&](int64_t first, int count, int) {
      if (dense && !has_norm) draw_fire(first, count, step, s.fire);
      for (int i = 0; i < count; ++i) {
        const int64_t row = first + i;
        const float* d_y_row = d_y + row * d_y_row_floats + int64_t{2 * pw} * d_y_cell;
        adjoint_row(s, row);
        find_tap_rows(source, row, s.tap_rows);
        if (dense)
          dense_grad(s, sum, s.fire + int64_t{i} * W, d_y_row);
        else
          for (int f = 0; f < F; ++f)
            depthwise_grad(s.tap_rows, tap_count, kw, Cp, d_y_row + f * Cp, d_y_cell, W, Cp,
                           sum.perceive_w.partial + int64_t{f} * tap_count * run);
        add_column_sums(d_y_row, d_y_cell, W, d_y_cell, sum.perceive_b.partial);
        sum.filters_pending += W;
        if (sum.filters_pending >= kGradientFoldCells) sum.fold_filters();
      }
    });
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
    if (!dense) {
      for (int f = 0; f < F; ++f) {
        for (int r = 0; r < tap_count; ++r) s.cell_taps[r] = s.tap_rows[r] + f * Cp;
        depthwise_row({s.cell_taps, tap_count, kw, d_y_cell, adjoint_w + int64_t{f} * tap_count * run, nullptr, Cp,
                       f > 0, s.pad_row, Cp},
                      width);
      }
      return;
    }
    const int adjoint_run = kw * d_y_cell, chunk = std::max(1, std::min(kw, 96 / d_y_cell)) * d_y_cell;
    for (int w0 = 0; w0 < width; w0 += kLargeBatch) {
      const int n = std::min(kLargeBatch, width - w0);
      for (int i = 0; i < n; ++i)
        for (int r = 0; r < tap_count; ++r)
          s.cell_taps[int64_t{r} * kLargeBatch + i] = s.tap_rows[r] + int64_t{w0 + i} * d_y_cell;
      pad_cell_taps(s, n);
      dense_cells(s.cell_tap_rows, tap_count, adjoint_run, chunk, Panels{adjoint_w, tap_count * adjoint_run, Cp},
                  zero_row, s.pad_row + int64_t{w0} * Cp, Cp, n);
    }
  }

  // d_perceive_weight [taps*kw*Cp][F*Cp] += x^T d_y over the cells of a row whose d_y is not zero.
  void dense_grad(Scratch& s, GradientSums& sum, const uint8_t* fire, const float* d_y_row) const {
    int n = 0;
    auto flush = [&] {
      if (n == 0) return;
      for (int r = 0; r < tap_count; ++r)
        outer_product(PointerRows{s.cell_tap_rows[r], 0}, s.y_row, d_y_cell, n, run, d_y_cell,
                      sum.perceive_w.partial + int64_t{r} * run * d_y_cell, d_y_cell);
      n = 0;
    };
    for (int w = 0; w < W; ++w) {
      if (!has_norm && !fire[w]) continue;
      add_cell_taps(s, n, w);
      copy(d_y_row + int64_t{w} * d_y_cell, s.y_row + int64_t{n} * d_y_cell, d_y_cell);
      if (++n == kLargeBatch) flush();
    }
    flush();
  }
};
