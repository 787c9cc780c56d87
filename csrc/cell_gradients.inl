// The gradient of one step at the cells: from the gradient of the new state back to the perception v = (x, y), and the
// sums that the gradients of the dense layers, of the norm and of the modulation are made of.

struct CellGradients : Adjoint {
  float* y;                      // perception of all cells [cells][F*Cp]; not if fused
  float *out_wt, *folded_wt;     // [Cp][hp] panels, [slots][hp][V]
  float* centres;                // [groups][V] means of the perception, zero without norm
  float *map_matrix, *map_bias;  // norm: v -> its share of the gradient, [groups][V][V] and [groups][V]
  double *sum_g, *sum_gh;        // [slots][hp]: sums of g and of g * normalised hidden
  double *grad_hidden_w, *grad_hidden_b, *grad_norm_w, *grad_norm_b, *grad_scale, *grad_shift;
  GradientSums* sums;

  CellGradients(const BackwardArgs& a, Workspace& w) : Adjoint(a, w) {
    y = take<float>(fused ? 0 : rows * W * d_y_cell);
    folded_wt = take<float>(int64_t{slots} * hp * V);
    centres = take_zeros<float>(int64_t{groups} * V);
    map_matrix = take_zeros<float>(has_norm ? int64_t{groups} * V * V : 0);
    map_bias = take_zeros<float>(int64_t{groups} * V);
    sum_g = take<double>(int64_t{slots} * hp), sum_gh = take<double>(int64_t{slots} * hp);
    grad_hidden_w = take_zeros<double>(int64_t{hp} * V), grad_hidden_b = take_zeros<double>(hp);
    grad_norm_w = take_zeros<double>(hp), grad_norm_b = take_zeros<double>(hp);
    grad_scale = take_zeros<double>(int64_t{B} * hp), grad_shift = take_zeros<double>(int64_t{B} * hp);
    pack_transposed();
    make_sums();
  }

  void pack_transposed() {
    out_wt = take_zeros<float>(int64_t{Cp} * hp);
    for (int o = 0; o < hp; ++o)
      for (int c = 0; c < Cp; ++c) *panel_entry(out_wt, Cp, hp, c, o) = out_w[o * Cp + c];
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
          folded_wt[(int64_t{slot} * hp + o) * V + v] = *panel_entry(folded_w + int64_t{slot} * V * hp, V, hp, v, o);
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

  // s.v, s.d_delta of n firing cells -> s.d_v, the gradients of their perceptions, and the sums that the weights'
  // gradients are made of.
  void layers_batch(Scratch& s, GradientSums& sum, int slot, int n) const {
    const Panels w = folded(slot), wt{out_wt, Cp, hp};
    const StridedRows d_delta{s.d_delta, Cp};
    for (int j = 0; j < hp; j += kPanel) {
      const int width = w.width(j);
      hidden_panel(s, slot, j, n, false);
      product<Start::kZero>(d_delta, wt.at(j), width, Cp, width, nullptr, s.d_hidden, kPanel, n);
      leaky ? activation_bwd<true>(s, width, n) : activation_bwd<false>(s, width, n);
      const FixedRows<kPanel> d_hidden{s.d_hidden};
      const float* back = folded_wt + (int64_t{slot} * hp + j) * V;
      if (j == 0)
        product<Start::kZero>(d_hidden, back, V, width, V, nullptr, s.d_v, V, n);
      else
        product<Start::kAccumulate>(d_hidden, back, V, width, V, nullptr, s.d_v, V, n);
      outer_product(StridedRows{s.d_hidden, kPanel}, s.v, V, n, width, V, sum.outer.partial + int64_t{j} * V, V);
      outer_product(StridedRows{s.hidden, kPanel}, s.d_delta, Cp, n, width, Cp, sum.out_w.partial + int64_t{j} * Cp,
                    Cp);
      add_column_sums(s.d_hidden, kPanel, n, width, sum.hidden.partial + j);
    }
    sum.cells_pending += n;
    if (sum.cells_pending >= kGradientFoldCells) sum.fold_cells();
  }

  // ---- sweep of the cells --------------------------------------------------------------------------------

  // Where the gradient of a firing cell's perception goes.
  struct Target {
    float *d_x, *d_y;
  };

  void cells_batch(Scratch& s, GradientSums& sum, int slot, int n, const Target* targets) const {
    if (n == 0) return;
    layers_batch(s, sum, slot, n);
    for (int i = 0; i < n; ++i) {
      const float* d_v = s.d_v + int64_t{i} * V;
      add(d_v, targets[i].d_x, Cp);
      copy(d_v + Cp, targets[i].d_y, d_y_cell);
    }
  }

  // The perception of all cells into y, gradients of firing cells into d_source and d_y; d_y is zero elsewhere.
  void cells_sweep(Scratch& s, GradientSums& sum, int step, const float* source, std::vector<Target>& targets) const {
    int previous = -1;
    targets.resize(kLargeBatch);
    for_groups([&](int64_t first, int count, int slot) {
      if (slot != previous) select_slot(sum, slot);
      previous = slot;
      draw_fire(first, count, step, s.fire);
      const int firing = list_firing(s.fire, count, s.firing, s.firing_padded);
      int n = 0, q = 0;
      for (int r = 0; r < count; ++r) {
        int end = q;
        while (end < firing && s.firing[end] < (r + 1) * W) ++end;
        std::memset(d_y + (first + r) * d_y_row_floats, 0, sizeof(float) * d_y_row_floats);
        find_tap_rows(source, first + r, s.tap_rows);
        perceive_row(s, y + (first + r) * W * d_y_cell);
        for (int m; q < end; q += m) {
          m = std::min(end - q, batch_cells - n);
          add_listed(s, slot, first, q, m, source, n, targets.data());
          n += m;
          if (n == batch_cells) cells_batch(s, sum, slot, n, targets.data()), n = 0;
        }
      }
      cells_batch(s, sum, slot, n, targets.data());
    });
    sum.fold_cells();
  }

  // Cells q to q + m of the list become number n and following of the batch.
  void add_listed(Scratch& s, int slot, int64_t first, int q, int m, const float* source, int n,
                  Target* targets) const {
    const float* centre = centres + (groups > 1 ? int64_t{slot} * V : 0);
    const int *at = s.firing + q, *padded_at = s.firing_padded + q;
    const int64_t origin = first * W;
    float* v = s.v + int64_t{n} * V;
    gather(cell(source, first, 0), padded_at, m, Cp, centre, v, V, difference);
    gather(y + origin * d_y_cell, at, m, d_y_cell, centre + Cp, v + Cp, V, difference);
    gather(d_state + origin * Cp, at, m, Cp, free_channels, s.d_delta + int64_t{n} * Cp, Cp, masked);
    for (int i = 0; i < m; ++i) {
      const int r = at[i] / W, w = at[i] % W;
      targets[n + i] = {d_source + (origin + at[i]) * Cp,
                        d_y + (first + r) * d_y_row_floats + int64_t{w + 2 * pw} * d_y_cell};
    }
  }

  // ---- the same, fused with the adjoint of dense filters ---------------------------------------------------

  void fused_batch(Scratch& s, GradientSums& sum, int slot, int n) const {
    if (n == 0) return;
    perceive_dense(s, n, s.v + Cp, V);
    layers_batch(s, sum, slot, n);
    for (int i = 0; i < n; ++i) add(s.d_v + int64_t{i} * V, s.targets[i], Cp);
    spread_batch(s, sum, s.d_v + Cp, V, n);
  }

  // From the gradient d_from of the new state, all of what goes back to the cells that fire and those that they read,
  // added to d_to or to the halo.
  void fused_sweep(Scratch& s, GradientSums& sum, Halo& halo, int step, const float* source, const float* d_from,
                   float* d_to) const {
    int n = 0, gathered_slot = -1;
    for_groups([&](int64_t first, int count, int slot) {
      if (slot != gathered_slot) {
        fused_batch(s, sum, gathered_slot, n), n = 0;
        select_slot(sum, slot);
      }
      gathered_slot = slot;
      draw_fire(first, count, step, s.fire);
      for (int64_t row = first; row < first + count; ++row) {
        const int firing = list_firing(s.fire + (row - first) * W, 1, s.firing, s.firing_padded);
        find_rows(s, halo, row, source, d_to);
        for (int q = 0, m; q < firing; q += m) {
          m = std::min(firing - q, batch_cells - n);
          add_row_cells(s, row, q, m, n, source, d_from, d_to);
          n += m;
          if (n == batch_cells) fused_batch(s, sum, slot, n), n = 0;
        }
      }
    });
    fused_batch(s, sum, gathered_slot, n);
    sum.fold_cells(), sum.fold_filters();
  }

  // Cells q to q + m of the row's list become number n and following of the batch.
  void add_row_cells(Scratch& s, int64_t row, int q, int m, int n, const float* source, const float* d_from,
                     float* d_to) const {
    const int64_t origin = row * W * Cp;
    const float* x = cell(source, row, 0);
    gather(x, s.firing_padded + q, m, Cp, x, s.v + int64_t{n} * V, V, unchanged);
    gather(d_from + origin, s.firing + q, m, Cp, free_channels, s.d_delta + int64_t{n} * Cp, Cp, masked);
    for (int i = 0; i < m; ++i) {
      add_cell(s, n + i, s.firing[q + i]);
      s.targets[n + i] = d_to + origin + int64_t{s.firing[q + i]} * Cp;
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
          centred(cell(source, row, w0), y + (row * W + w0) * d_y_cell, centres + g * V, n, s.v);
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
};
