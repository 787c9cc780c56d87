// The backward rollout. Only states are kept; a segment of steps is replayed from its first state, then each step runs
// backward in three sweeps:
//   cells     recompute the firing cells and take their gradients back to the perception v = (x, y)
//   (norm)    every cell feels the batch statistics: one affine map of v, from sums over the firing cells
//   filters   take the gradient of y through the adjoint of the convolution, and to the filters' weights

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

struct GradientSums {
  Sum out_w, perceive_w, perceive_b;  // over all steps
  Sum outer, hidden;                  // sum of g v^T [hp][V] and of g [hp] of the current slot and step,
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

struct Backward : Engine {
  const BackwardArgs& out;
  float *d_state, *d_source;     // compact [cells][Cp]: gradient of the state, and of perceive_from if there is one
  float *y, *d_y;                // perception of all cells; its gradient in rows of W + 4*pad cells with zero margins
  float *out_wt, *folded_wt;     // [Cp][hp] panels, [slots][hp][V]
  float* adjoint_w;              // flipped filters
  float* centres;                // [groups][V] means of the perception, zero without norm
  float *map_matrix, *map_bias;  // norm: v -> its share of the gradient, [groups][V][V] and [groups][V]
  double *sum_g, *sum_gh;        // [slots][hp]: sums of g and of g * normalised hidden
  double *grad_hidden_w, *grad_hidden_b, *grad_norm_w, *grad_norm_b, *grad_scale, *grad_shift;
  GradientSums* sums;
  int* pre_d;  // which padded indices an index of D (or H) is read for: lists of counts and entries
  int* pre_h;
  int64_t d_y_row_floats;
  int d_y_cell;

  Backward(const BackwardArgs& a, Workspace& w) : Engine(a, w), out(a) {
    d_y_cell = F * Cp, d_y_row_floats = int64_t{W + 4 * pw} * d_y_cell;
    d_state = take<float>(rows * W * Cp);
    d_source = a.perceive_from != nullptr ? take<float>(rows * W * Cp) : d_state;
    y = take<float>(rows * W * d_y_cell);
    d_y = take<float>(rows * d_y_row_floats);
    folded_wt = take<float>(int64_t{slots} * hp * V);
    centres = take_zeros<float>(int64_t{groups} * V);
    map_matrix = take_zeros<float>(has_norm ? int64_t{groups} * V * V : 0);
    map_bias = take_zeros<float>(int64_t{groups} * V);
    sum_g = take<double>(int64_t{slots} * hp), sum_gh = take<double>(int64_t{slots} * hp);
    grad_hidden_w = take_zeros<double>(int64_t{hp} * V), grad_hidden_b = take_zeros<double>(hp);
    grad_norm_w = take_zeros<double>(hp), grad_norm_b = take_zeros<double>(hp);
    grad_scale = take_zeros<double>(int64_t{B} * hp), grad_shift = take_zeros<double>(int64_t{B} * hp);
    pre_d = preimages(D, pd, map_d), pre_h = preimages(H, ph, map_h);
    pack_transposed();
    make_sums();
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

  void pack_transposed() {
    out_wt = take_zeros<float>(int64_t{Cp} * hp);
    for (int o = 0; o < hp; ++o)
      for (int c = 0; c < Cp; ++c) *panel_entry(out_wt, Cp, hp, c, o) = out_w[o * Cp + c];
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

  Sum make_sum(int64_t n) { return {take_zeros<float>(n), take_zeros<double>(n), n}; }
  void make_sums() {
    sums = take<GradientSums>(args.threads);
    const int64_t filter_weights = int64_t{tap_count} * kw * d_y_cell * (dense ? Cp : 1);
    for (int t = 0; t < args.threads; ++t) {
      sums[t].out_w = make_sum(int64_t{hp} * Cp);
      sums[t].perceive_w = make_sum(filter_weights);
      sums[t].perceive_b = make_sum(d_y_cell);
      sums[t].outer_slots = take_zeros<double>(int64_t{slots} * hp * V);
      sums[t].hidden_slots = take_zeros<double>(int64_t{slots} * hp);
      sums[t].outer = {take_zeros<float>(int64_t{hp} * V), sums[t].outer_slots, int64_t{hp} * V};
      sums[t].hidden = {take_zeros<float>(hp), sums[t].hidden_slots, hp};
      sums[t].cells_pending = sums[t].filters_pending = 0;
    }
  }
  // ---- folding -----------------------------------------------------------------------------------------

  // Folded weights and their transpose for one step; with norm, around the mean of the group.
  void fold_step(const double* stats) const {
    if (has_norm) {
      hidden_statistics(stats);
#pragma omp barrier
    }
    fold_weights(has_norm);
    int64_t begin, end;
    share(hp / kVL, &begin, &end);
    for (int slot = 0; slot < slots; ++slot)
      for (int o = int(begin) * kVL; o < end * kVL; ++o)
        for (int v = 0; v < V; ++v)
          folded_wt[(int64_t{slot} * hp + o) * V + v] =
              *panel_entry(folded_w + int64_t{slot} * V * hp, V, hp, v, o);
    if (has_norm && omp_get_thread_num() == 0)
      for (int g = 0; g < groups; ++g)
        for (int v = 0; v < V_logical; ++v) centres[int64_t{g} * V + padded(v)] = float(stats[g * stats_width() + v]);
  }

  // ---- cells -------------------------------------------------------------------------------------------

  template <bool kLeaky>
  void activation_bwd(Scratch& s, int width, int n) const {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < width; j += kVL) {
        float *u = s.hidden + i * kPanel + j, *d = s.d_hidden + i * kPanel + j;
        const vf value = load(u);
        store(d, activate_bwd<kLeaky>(value, load(d)));
        store(u, activate<kLeaky>(value));
      }
  }

  // s.v, s.d_delta of n firing cells -> s.d_v, and the sums that the weights' gradients are made of.
  void cells_batch(Scratch& s, GradientSums& sum, int slot, int n) const {
    const Panels w = folded(slot), wt{out_wt, Cp, hp};
    const StridedRows d_delta{s.d_delta, Cp};
    for (int j = 0; j < hp; j += kPanel) {
      const int width = w.width(j);
      hidden_panel<Start::kBias>(s, slot, j, n, false);
      product<Start::kZero>(d_delta, wt.at(j), width, Cp, width, nullptr, s.d_hidden, kPanel, n);
      leaky ? activation_bwd<true>(s, width, n) : activation_bwd<false>(s, width, n);
      const FixedRows<kPanel> d_hidden{s.d_hidden};
      const float* back = folded_wt + (int64_t{slot} * hp + j) * V;
      if (j == 0)
        product<Start::kZero>(d_hidden, back, V, width, V, nullptr, s.d_v, V, n);
      else
        product<Start::kAccumulate>(d_hidden, back, V, width, V, nullptr, s.d_v, V, n);
      outer_product(StridedRows{s.d_hidden, kPanel}, s.v, V, n, width, V, sum.outer.partial + int64_t{j} * V, V);
      outer_product(StridedRows{s.hidden, kPanel}, s.d_delta, Cp, n, width, Cp, sum.out_w.partial + int64_t{j} * Cp, Cp);
      add_column_sums(s.d_hidden, kPanel, n, width, sum.hidden.partial + j);
    }
    sum.cells_pending += n;
    if (sum.cells_pending >= kGradientFoldCells) sum.fold_cells();
  }

  // Where the gradient of a firing cell's perception goes.
  struct Target {
    float *d_x, *d_y;
  };

  // The perception of all cells into y (with norm) or of this row (without), gradients of firing cells into d_source
  // and d_y; d_y is zero elsewhere.
  void cells_sweep(Scratch& s, GradientSums& sum, int step, const float* source, std::vector<Target>& targets) const {
    int previous = -1;
    targets.resize(kLargeBatch);
    for_groups([&](int64_t first, int count, int slot) {
      if (slot != previous) select_slot(sum, slot);
      previous = slot;
      const float* centre = centres + (groups > 1 ? int64_t{slot} * V : 0);
      draw_fire(first, count, step, s.fire);
      int n = 0;
      auto flush = [&] {
        if (n == 0) return;
        cells_batch(s, sum, slot, n);
        for (int i = 0; i < n; ++i) {
          const float* d_v = s.d_v + int64_t{i} * V;
          add(d_v, targets[i].d_x, Cp);
          copy(d_v + Cp, targets[i].d_y, d_y_cell);
        }
        n = 0;
      };
      for (int r = 0; r < count; ++r) {
        const int64_t row = first + r;
        const int firing = list_firing(s.fire + int64_t{r} * W, s.firing);
        float* y_row = y + row * W * d_y_cell;
        float* d_y_row = d_y + row * d_y_row_floats;
        std::memset(d_y_row, 0, sizeof(float) * d_y_row_floats);
        find_tap_rows(source, row, s.tap_rows);
        if (has_norm || !dense)
          perceive_row(s, y_row);
        else
          perceive_listed(s, firing, y_row);
        for (int q = 0; q < firing; ++q) {
          const int w = s.firing[q];
          centred(cell(source, row, w), y_row + int64_t{w} * d_y_cell, centre, s.v + int64_t{n} * V);
          const int64_t at = (row * W + w) * Cp;
          copy(d_state + at, s.d_delta + int64_t{n} * Cp, Cp);
          targets[n] = {d_source + at, d_y_row + int64_t{w + 2 * pw} * d_y_cell};
          if (++n == batch_cells) flush();
        }
      }
      flush();
    });
    sum.fold_cells();
  }

  // Dense perception of the listed cells of a row only.
  void perceive_listed(Scratch& s, int firing, float* y_row) const {
    for (int q0 = 0; q0 < firing; q0 += kLargeBatch) {
      const int n = std::min(kLargeBatch, firing - q0);
      for (int i = 0; i < n; ++i) add_cell_taps(s, i, s.firing[q0 + i]);
      perceive_dense(s, n, s.y_row, d_y_cell);
      for (int i = 0; i < n; ++i)
        copy(s.y_row + int64_t{i} * d_y_cell, y_row + int64_t{s.firing[q0 + i]} * d_y_cell, d_y_cell);
    }
  }

  void select_slot(GradientSums& sum, int slot) const {
    sum.fold_cells();
    sum.outer.total = sum.outer_slots + int64_t{slot} * hp * V;
    sum.hidden.total = sum.hidden_slots + int64_t{slot} * hp;
  }

  // ---- sums of a step ----------------------------------------------------------------------------------

  // This thread's share of hidden units: gradients of norm, modulation and the first dense layer, from
  // P = sum g v^T and s = sum g of each slot. With norm, v is centred, and
  //   d_hidden_weight = a (P - rstd c2 W Cov),  c2 = sum of g * normalised hidden    (the mean's share vanishes).
  void parameter_sweep(const double* stats) const {
    int64_t begin, end;
    share(hp, &begin, &end);
    const int count = omp_get_num_threads();
    std::vector<double> outer(V), through(V);
    for (int o = int(begin); o < std::min<int64_t>(end, h); ++o)
      for (int slot = 0; slot < slots; ++slot) {
        double s = 0, gh = 0;
        std::fill(outer.begin(), outer.end(), 0.0);
        for (int t = 0; t < count; ++t) {
          s += sums[t].hidden_slots[int64_t{slot} * hp + o];
          sums[t].hidden_slots[int64_t{slot} * hp + o] = 0;
          double* p = sums[t].outer_slots + (int64_t{slot} * hp + o) * V;
          for (int v = 0; v < V; ++v) outer[v] += p[v], p[v] = 0;
        }
        for (int v = 0; v < V; ++v) gh += double(hidden_w[int64_t{v} * hp + o]) * outer[v];  // sum of g * (W v)
        finish_slot(slot, o, s, gh, outer.data());
      }
    if (!has_norm) return;
    for (int o = int(begin); o < std::min<int64_t>(end, h); ++o)
      for (int g = 0; g < groups; ++g) {
        const double* covariance = stats + g * stats_width() + V_logical;
        double c2 = 0;
        for (int slot : group_slots(g)) c2 += modulation(slot, o) * sum_gh[int64_t{slot} * hp + o];
        const double r = rstd[g * hp + o], factor = args.norm_weight[o] * r * r * c2;
        std::fill(through.begin(), through.end(), 0.0);
        for (int i = 0; i < V_logical; ++i) {
          const double w = factor * args.hidden_weight[int64_t{o} * V_logical + i];
          for (int j = 0; j < V_logical; ++j) through[j] += w * covariance[int64_t{i} * V_logical + j];
        }
        for (int j = 0; j < V_logical; ++j) grad_hidden_w[int64_t{o} * V + padded(j)] -= through[j];
      }
  }
  // One slot's share, except for the norm's term through the covariance.
  void finish_slot(int slot, int o, double s, double gh, const double* outer) const {
    const double m = modulation(slot, o);
    double a = m, input = gh + hidden_b[o] * s;  // sum of g * (what modulation scales)
    if (has_norm) {
      const double r = rstd[(groups > 1 ? slot : 0) * hp + o];
      gh *= r;  // now with the normalised hidden
      grad_norm_w[o] += m * gh, grad_norm_b[o] += m * s;
      input = args.norm_weight[o] * gh + args.norm_bias[o] * s;
      a = m * args.norm_weight[o] * r;
    } else {
      grad_hidden_b[o] += m * s;
    }
    if (args.scale != nullptr) grad_scale[int64_t{slot} * hp + o] += input, grad_shift[int64_t{slot} * hp + o] += s;
    for (int v = 0; v < V; ++v) grad_hidden_w[int64_t{o} * V + v] += a * outer[v];
    sum_g[int64_t{slot} * hp + o] = s, sum_gh[int64_t{slot} * hp + o] = gh;
  }
  double modulation(int slot, int o) const { return args.scale != nullptr ? args.scale[int64_t{slot} * h + o] : 1.0; }

  struct SlotRange {
    int first, last;
    struct Iterator {
      int i;
      int operator*() const { return i; }
      Iterator& operator++() { return ++i, *this; }
      bool operator!=(const Iterator& other) const { return i != other.i; }
    };
    Iterator begin() const { return {first}; }
    Iterator end() const { return {last}; }
  };
  SlotRange group_slots(int g) const { return groups > 1 ? SlotRange{g, g + 1} : SlotRange{0, slots}; }

  // The norm's map of a group: d_v += map_matrix^T (v - mean) + map_bias for every cell, this thread's share of rows.
  //   d_hidden = gamma rstd (g - c1 - c2 h^),  c1, c2 means over the group's cells of g and g h^
  void map_sweep() const {
    const double inverse = 1.0 / (double(cells) * (groups > 1 ? 1 : B));
    std::vector<double> constant(h), linear(h), row(V_logical);
    for (int g = 0; g < groups; ++g) {
      for (int o = 0; o < h; ++o) {
        double c1 = 0, c2 = 0;
        for (int slot : group_slots(g)) {
          c1 += modulation(slot, o) * sum_g[int64_t{slot} * hp + o];
          c2 += modulation(slot, o) * sum_gh[int64_t{slot} * hp + o];
        }
        const double r = rstd[g * hp + o], a = args.norm_weight[o] * r;
        constant[o] = a * c1 * inverse, linear[o] = a * c2 * inverse * r;
      }
      for (int i = omp_get_thread_num(); i < V_logical; i += omp_get_num_threads()) {
        double bias = 0;
        std::fill(row.begin(), row.end(), 0.0);
        for (int o = 0; o < h; ++o) {
          const float* w = args.hidden_weight + int64_t{o} * V_logical;
          const double through = linear[o] * w[i];
          bias += constant[o] * w[i];
          for (int j = 0; j < V_logical; ++j) row[j] += through * w[j];
        }
        const int64_t ip = int64_t{g} * V + padded(i);
        map_bias[ip] = float(-bias);
        for (int j = 0; j < V_logical; ++j) map_matrix[ip * V + padded(j)] = float(-row[j]);
      }
    }
  }

  void apply_map(Scratch& s, const float* source) const {
    constexpr int kCells = kSmallBatch;
    for_chunks([&](int chunk) {
      const int64_t g = groups > 1 ? sample_of_chunk(chunk) : 0;
      for (int64_t row = chunk_begin(chunk); row < chunk_end(chunk); ++row)
        for (int w0 = 0; w0 < W; w0 += kCells) {
          const int n = std::min(kCells, W - w0);
          for (int i = 0; i < n; ++i)
            centred(cell(source, row, w0 + i), y + (row * W + w0 + i) * d_y_cell, centres + g * V, s.v + int64_t{i} * V);
          product<Start::kBias>(StridedRows{s.v, V}, map_matrix + g * V * V, V, V, V, map_bias + g * V, s.d_v, V, n);
          for (int i = 0; i < n; ++i) {
            const float* d_v = s.d_v + int64_t{i} * V;
            float* dx = d_source + (row * W + w0 + i) * Cp;
            float* dy = d_y + row * d_y_row_floats + int64_t{w0 + i + 2 * pw} * d_y_cell;
            add(d_v, dx, Cp);
            add(d_v + Cp, dy, d_y_cell);
          }
        }
    });
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
        depthwise_row({s.cell_taps, tap_count, kw, d_y_cell, adjoint_w + int64_t{f} * tap_count * run, nullptr, Cp, f > 0,
                       s.pad_row, Cp},
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

  // ---- in and out --------------------------------------------------------------------------------------

  void load_gradient() const {
    for_rows([&](int64_t row) {
      if (C == Cp) load_values(args.storage, out.d_out, row * W * C, W * C, d_state + row * W * C);
      for (int w = 0; C != Cp && w < W; ++w) {
        float* to = d_state + (row * W + w) * Cp;
        load_values(args.storage, out.d_out, (row * W + w) * C, C, to);
        std::fill(to + C, to + Cp, 0.0f);
      }
      if (d_source != d_state) std::memset(d_source + row * W * Cp, 0, sizeof(float) * W * Cp);
    });
  }
  void store_gradient(const float* from, void* to) const {
    for_rows([&](int64_t row) {
      if (C == Cp) return store_values(args.storage, from + row * W * C, W * C, to, row * W * C);
      for (int w = 0; w < W; ++w) store_values(args.storage, from + (row * W + w) * Cp, C, to, (row * W + w) * C);
    });
  }

  // Thread sums in the order of the threads -> the caller's arrays.
  void store_parameters() const {
    auto total = [&](Sum GradientSums::*member, int64_t i) {
      double sum = 0;
      for (int t = 0; t < args.threads; ++t) sum += (sums[t].*member).total[i];
      return float(sum);
    };
    const int taps = tap_count * kw;
    for (int f = 0; f < F; ++f)
      for (int co = 0; co < C; ++co) {
        out.d_perceive_bias[f * C + co] = total(&GradientSums::perceive_b, f * Cp + co);
        for (int t = 0; t < taps; ++t) {
          if (!dense) {
            out.d_perceive_weight[(int64_t{f} * C + co) * taps + t] =
                total(&GradientSums::perceive_w, (int64_t{f} * taps + t) * Cp + co);
            continue;
          }
          for (int ci = 0; ci < C; ++ci)
            out.d_perceive_weight[((int64_t{f} * C + co) * C + ci) * taps + t] =
                total(&GradientSums::perceive_w, int64_t{t * Cp + ci} * d_y_cell + f * Cp + co);
        }
      }
    for (int o = 0; o < h; ++o) {
      for (int c = 0; c < C; ++c)
        out.d_out_weight[c * h + o] =
            c < args.frozen_channels ? 0.0f : total(&GradientSums::out_w, int64_t{o} * Cp + c);
      for (int v = 0; v < V_logical; ++v)
        out.d_hidden_weight[int64_t{o} * V_logical + v] = float(grad_hidden_w[int64_t{o} * V + padded(v)]);
      out.d_hidden_bias[o] = float(grad_hidden_b[o]);
      if (has_norm) out.d_norm_weight[o] = float(grad_norm_w[o]), out.d_norm_bias[o] = float(grad_norm_b[o]);
      if (args.scale != nullptr)
        for (int b = 0; b < B; ++b) {
          out.d_scale[int64_t{b} * h + o] = float(grad_scale[int64_t{b} * hp + o]);
          out.d_shift[int64_t{b} * h + o] = float(grad_shift[int64_t{b} * hp + o]);
        }
    }
  }

  // ---- the rollout -------------------------------------------------------------------------------------

  const double* stats_of(int step) const { return has_norm ? args.stats + step * groups * stats_width() : nullptr; }

  // states[i + 1] = step `begin + i` of states[i], for all steps of a segment but the last.
  void replay(Scratch& s, int begin, int count, float* const* states, const float* source) const {
    for (int i = 0; i + 1 < count; ++i) {
      const float* z = source != nullptr ? source : states[i];
      if (has_norm) {
        hidden_statistics(stats_of(begin + i));
#pragma omp barrier
        fold_weights(false);
        perceive_all(s, z, y, false);
      }
#pragma omp barrier
      update_rows(s, begin + i, z, states[i], states[i + 1], has_norm ? y : nullptr);
#pragma omp barrier
    }
  }

  void step_bwd(Scratch& s, GradientSums& sum, int step, const float* source, std::vector<Target>& targets) const {
    if (has_norm) {
      fold_step(stats_of(step));
#pragma omp barrier
    }
    cells_sweep(s, sum, step, source, targets);
#pragma omp barrier
    parameter_sweep(stats_of(step));
#pragma omp barrier
    if (has_norm) {
      map_sweep();
#pragma omp barrier
      apply_map(s, source);
#pragma omp barrier
    }
    filters_sweep(s, sum, step, source);
    sum.fold_filters();
#pragma omp barrier
  }
};

static void rollout_bwd(const BackwardArgs& args) {
  Workspace& workspace = Workspace::get();
  {
    Backward e(args, workspace);
    const int segment = std::max(1, std::min(args.keep_every, args.steps));
    float** states = e.take<float*>(segment);
    for (int i = 0; i < segment; ++i) states[i] = e.take<float>(e.state_floats);
    float* source = args.perceive_from != nullptr ? e.take<float>(e.state_floats) : nullptr;
    const int64_t state_values = e.rows * e.W * e.C;

#pragma omp parallel num_threads(args.threads)
    {
      Scratch& s = e.scratch[omp_get_thread_num()];
      GradientSums& sum = e.sums[omp_get_thread_num()];
      std::vector<Backward::Target> targets;
      e.load_gradient();
      if (source != nullptr) e.load_state(args.perceive_from, 0, source);
      if (!e.has_norm) e.fold_step(nullptr);
      for (int index = (args.steps + segment - 1) / segment - 1; index >= 0; --index) {
        const int begin = index * segment, count = std::min(segment, args.steps - begin);
        if (index == 0)
          e.load_state(args.state, 0, states[0]);
        else
          e.load_state(args.kept, (index - 1) * state_values, states[0]);
#pragma omp barrier
        e.replay(s, begin, count, states, source);
        for (int i = count - 1; i >= 0; --i)
          e.step_bwd(s, sum, begin + i, source != nullptr ? source : states[i], targets);
      }
#pragma omp barrier
      e.store_gradient(e.d_state, args.d_state);
      if (source != nullptr) e.store_gradient(e.d_source, args.d_perceive_from);
    }
    e.store_parameters();
  }
  workspace.trim();
}
