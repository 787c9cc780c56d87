// One step: norm statistics, the dense weights they fold into, and the update of the firing cells.

constexpr int kUnits = 16;                           // hidden units whose statistics are computed at once
constexpr int kFormRows = kRegisters == 32 ? 4 : 1;  // accumulators: rows * kUnits doubles

// form[q] += sum of w_i[q] m[i][j] w[j][q] over R rows i of m and all n columns j: a share of w^T m w for kUnits
// columns q.
template <int R>
static void add_form(const double* m, int n, const double* w_i, const double* w, double* form) {
  typedef double vd __attribute__((vector_size(kVL * 4), may_alias, aligned(8)));
  constexpr int kWidth = kVL / 2, kParts = kUnits / kWidth;
  vd sum[R][kParts] = {};
  for (int j = 0; j < n; ++j)
#pragma GCC unroll 8
    for (int p = 0; p < kParts; ++p) {
      const vd column = *(const vd*)(w + j * kUnits + p * kWidth);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) sum[i][p] += (m[int64_t{i} * n + j] - vd{}) * column;
    }
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < kParts; ++p)
      *(vd*)(form + p * kWidth) += sum[i][p] * *(const vd*)(w_i + i * kUnits + p * kWidth);
}

struct Engine : Perceiver {
  int batch_cells;             // firing cells per product
  float *hidden_w, *hidden_b;  // [V][hp], [hp] before folding
  float* out_w;                // [hp][Cp], frozen columns zero
  float* free_channels;        // [Cp] bit masks: zeros for frozen channels, which not even a NaN may reach
  float *folded_w, *folded_b;  // [slots] panels of [V][hp], [hp]
  double* chunk_moments;       // [chunks][V + V*V] around the pivot
  double* step_stats;          // [groups][V_logical + V_logical^2] of the current step
  double* rstd;                // [groups][hp]
  double* mean_h;              // [groups][hp] hidden_weight . mean, without bias
  Box counted;                 // the cells of a sample that the statistics are taken over: all of them in a rollout

  Engine(const RolloutArgs& a, Workspace& w) : Perceiver(a, w) {
    batch_cells = V * hp <= 8192 ? kSmallBatch : kLargeBatch;
    counted = {{0, 0, 0}, {D, H, W}};
    pack_weights();
    if (!has_norm) return;
    chunk_moments = take<double>(int64_t{chunks} * (V + int64_t{V} * V));
    step_stats = take<double>(groups * stats_width());
    rstd = take<double>(int64_t{groups} * hp);
    mean_h = take<double>(int64_t{groups} * hp);
  }

  void pack_weights() {
    hidden_w = take_zeros<float>(int64_t{V} * hp);
    hidden_b = take_zeros<float>(hp);
    out_w = take_zeros<float>(int64_t{hp} * Cp);
    for (int o = 0; o < h; ++o) {
      hidden_b[o] = args.hidden_bias[o];
      for (int v = 0; v < V_logical; ++v) hidden_w[int64_t{padded(v)} * hp + o] = args.hidden_weight[o * V_logical + v];
      for (int c = args.frozen_channels; c < C; ++c) out_w[o * Cp + c] = args.out_weight[c * h + o];
    }
    free_channels = take_zeros<float>(Cp);
    std::memset(free_channels + args.frozen_channels, 0xFF, sizeof(float) * (C - args.frozen_channels));
    folded_w = take<float>(int64_t{slots} * V * hp);
    folded_b = take<float>(int64_t{slots} * hp);
  }

  Panels folded(int slot) const { return {folded_w + int64_t{slot} * V * hp, V, hp}; }

  // ---- norm --------------------------------------------------------------------------------------------

  bool is_counted(int64_t row) const {
    const int d = int(row % plane / H), y = int(row % H);
    return counted.begin[0] <= d && d < counted.end[0] && counted.begin[1] <= y && y < counted.end[1];
  }
  double counted_cells() const {
    double n = groups > 1 ? 1 : B;
    for (int i = 0; i < 3; ++i) n *= counted.end[i] - counted.begin[i];
    return n;
  }

  // A constant near the mean of the perception, the same for all threads: it keeps the second moments from
  // cancelling. The mean over one row in the middle of the group.
  void find_pivot(Scratch& s, const float* source, int group) const {
    const int d = (counted.begin[0] + counted.end[0]) / 2, y = (counted.begin[1] + counted.end[1]) / 2;
    const int64_t row = group * plane + int64_t{d} * H + y;
    const int w = counted.begin[2], n = counted.end[2] - w;
    find_tap_rows(source, row, s.tap_rows);
    perceive_row(s, s.y_row);
    std::fill(s.pivot, s.pivot + V, 0.0f);
    add_column_sums(cell(source, row, w), Cp, n, Cp, s.pivot);
    add_column_sums(s.y_row + int64_t{w} * F * Cp, int64_t{F} * Cp, n, F * Cp, s.pivot + Cp);
    for (int v = 0; v < V; ++v) s.pivot[v] /= float(n);
  }

  // Perception of all cells into y [rows][W][F*Cp], and the moments of the counted ones per chunk. Without y only the
  // moments are wanted.
  void perceive_all(Scratch& s, const float* source, float* y, bool with_moments) const {
    int group = -1;
    for_chunks([&](int c) {
      if (with_moments && group != (groups > 1 ? sample_of_chunk(c) : 0)) {
        group = groups > 1 ? sample_of_chunk(c) : 0;
        find_pivot(s, source, group);
      }
      double* total = chunk_moments + int64_t{c} * (V + V * V);
      int64_t pending = 0;
      int n = 0;
      if (with_moments) {
        std::fill(total, total + V + V * V, 0.0);
        std::fill(s.moments, s.moments + int64_t{V} * V, 0.0f);
        std::fill(s.sums, s.sums + V, 0.0f);
      }
      auto add_batch = [&] {
        const StridedRows v{s.v, V};
        outer_product<true>(v, s.v, V, n, V, V, s.moments, V);
        add_column_sums(s.v, V, n, V, s.sums);
        pending += n, n = 0;
      };
      auto fold = [&] {
        for (int i = 0; i < V; ++i) total[i] += s.sums[i], s.sums[i] = 0.0f;
        for (int64_t i = 0; i < int64_t{V} * V; ++i) total[V + i] += s.moments[i], s.moments[i] = 0.0f;
        pending = 0;
      };
      for (int64_t row = chunk_begin(c); row < chunk_end(c); ++row) {
        const bool counts = with_moments && is_counted(row);
        if (y == nullptr && !counts) continue;
        float* y_row = y != nullptr ? y + row * W * F * Cp : s.y_row;
        find_tap_rows(source, row, s.tap_rows);
        perceive_row(s, y_row);
        if (!counts) continue;
        for (int w = counted.begin[2], m; w < counted.end[2]; w += m) {
          m = std::min(counted.end[2] - w, kMomentBatch - n);
          centred(cell(source, row, w), y_row + int64_t{w} * F * Cp, s.pivot, m, s.v + int64_t{n} * V);
          n += m;
          if (n == kMomentBatch) add_batch();
        }
        if (pending >= kFoldCells) fold();
      }
      if (with_moments) add_batch(), fold();
    });
  }
  // Chunk moments -> mean and covariance of each group, [V_logical + V_logical^2], shared among the threads by rows.
  // The order of summation is that of the chunks. Barriers before and after are the caller's.
  void reduce_moments(Scratch& s, const float* source, double* stats) const {
    const int per_group = chunks / groups;
    const double inverse = 1.0 / counted_cells();
    std::vector<double> shift(V), sums(V);
    for (int g = 0; g < groups; ++g) {
      const double* moments = chunk_moments + int64_t{g} * per_group * (V + V * V);
      double *mean = stats + g * stats_width(), *covariance = mean + V_logical;
      find_pivot(s, source, g);
      std::fill(shift.begin(), shift.end(), 0.0);
      for (int c = 0; c < per_group; ++c)
        for (int i = 0; i < V; ++i) shift[i] += moments[int64_t{c} * (V + V * V) + i];
      for (double& value : shift) value *= inverse;
      for (int i = omp_get_thread_num(); i < V_logical; i += omp_get_num_threads()) {
        const int ip = padded(i);
        mean[i] = s.pivot[ip] + shift[ip];
        std::fill(sums.begin(), sums.end(), 0.0);
        for (int c = 0; c < per_group; ++c) {
          const double* row = moments + int64_t{c} * (V + V * V) + V + int64_t{ip} * V;
          for (int j = ip / kVL * kVL; j < V; ++j) sums[j] += row[j];
        }
        for (int j = i; j < V_logical; ++j)
          covariance[i * V_logical + j] = covariance[j * V_logical + i] =
              sums[padded(j)] * inverse - shift[ip] * shift[padded(j)];
      }
    }
  }

  // hidden = W v is linear in v, so its mean and variance follow from those of v: this thread's share of hidden units.
  void hidden_statistics(const double* stats) const {
    int64_t begin, end;
    share((hp + kUnits - 1) / kUnits, &begin, &end);
    std::vector<double> w(int64_t{V_logical} * kUnits);
    for (int64_t block = begin; block < end; ++block) {
      const int o0 = int(block) * kUnits, n = std::min(kUnits, hp - o0);
      std::fill(w.begin(), w.end(), 0.0);
      for (int v = 0; v < V_logical; ++v)
        for (int q = 0; q < n; ++q) w[v * kUnits + q] = hidden_w[int64_t{padded(v)} * hp + o0 + q];
      for (int g = 0; g < groups; ++g) {
        const double *mean = stats + g * stats_width(), *covariance = mean + V_logical;
        double mu[kUnits] = {}, variance[kUnits] = {};
        for (int v = 0; v < V_logical; ++v)
          for (int q = 0; q < kUnits; ++q) mu[q] += mean[v] * w[v * kUnits + q];
        int i = 0;
        for (; i + kFormRows <= V_logical; i += kFormRows)
          add_form<kFormRows>(covariance + int64_t{i} * V_logical, V_logical, w.data() + i * kUnits, w.data(),
                              variance);
        for (; i < V_logical; ++i)
          add_form<1>(covariance + int64_t{i} * V_logical, V_logical, w.data() + i * kUnits, w.data(), variance);
        for (int q = 0; q < n; ++q) {
          mean_h[g * hp + o0 + q] = mu[q];
          rstd[g * hp + o0 + q] = 1.0 / std::sqrt(std::max(variance[q], 0.0) + kNormEps);
        }
      }
    }
  }

  // Scale and bias of hidden unit o, so that the activation's input is scale * (hidden_weight . v) + bias, in one slot.
  // `centred`: v has the mean of its group subtracted.
  void slot_affine(int slot, int o, bool centred, double* scale, double* bias) const {
    double a = 1.0, b = hidden_b[o];
    if (has_norm) {
      const int g = groups > 1 ? slot : 0;
      a = args_at(args.norm_weight, o) * rstd[g * hp + o];
      b = args_at(args.norm_bias, o) - (centred ? 0.0 : a * mean_h[g * hp + o]);
      if (!std::isfinite(hidden_b[o])) b = NAN;  // a finite one cancels
    }
    if (args.scale != nullptr) {
      const double m = o < h ? args.scale[slot * h + o] : 0.0;
      a *= m;
      b = m * b + (o < h ? args.shift[slot * h + o] : 0.0);
    }
    *scale = a, *bias = b;
  }
  double args_at(const float* values, int o) const { return o < h ? values[o] : 0.0; }

  // Folds norm and modulation into the first dense layer of every slot, this thread's share of panels' rows.
  void fold_weights(bool centred) const {
    int64_t begin, end;
    share(hp / kVL, &begin, &end);
    for (int slot = 0; slot < slots; ++slot)
      for (int o = int(begin) * kVL; o < end * kVL; ++o) {
        double a, b;
        slot_affine(slot, o, centred, &a, &b);
        folded_b[int64_t{slot} * hp + o] = float(b);
        float* w = folded_w + int64_t{slot} * V * hp;
        for (int v = 0; v < V; ++v) *panel_entry(w, V, hp, v, o) = float(a * hidden_w[int64_t{v} * hp + o]);
      }
  }

  // ---- update ------------------------------------------------------------------------------------------

  // s.hidden = act(folded_w . s.v + folded_b) for the hidden units of the panel at j.
  void hidden_panel(const Scratch& s, int slot, int j, int n, bool with_activation) const {
    const Panels w = folded(slot);
    const StridedRows v{s.v, V};
    const float* bias = folded_b + int64_t{slot} * hp + j;
    const int width = w.width(j);
    if (!with_activation)
      product<Start::kBias>(v, w.at(j), width, V, width, bias, s.hidden, kPanel, n);
    else if (leaky)
      product<Start::kBias, Finish::kLeakyRelu>(v, w.at(j), width, V, width, bias, s.hidden, kPanel, n);
    else
      product<Start::kBias, Finish::kRelu>(v, w.at(j), width, V, width, bias, s.hidden, kPanel, n);
  }

  // targets[i] += out_weight . act(hidden(v[i])) for the n gathered cells.
  void update_batch(Scratch& s, int slot, int n, bool gather_dense) const {
    if (n == 0) return;
    if (gather_dense) perceive_dense(s, n, s.v + Cp, V);
    for (int j = 0; j < hp; j += kPanel) {
      const int width = folded(slot).width(j);
      hidden_panel(s, slot, j, n, true);
      clear_columns(s.hidden, kPanel, std::max(h - j, 0), width, n);
      const FixedRows<kPanel> a{s.hidden};
      if (j == 0)
        product<Start::kZero>(a, out_w, Cp, width, Cp, nullptr, s.delta, Cp, n);
      else
        product<Start::kAccumulate>(a, out_w + int64_t{j} * Cp, Cp, width, Cp, nullptr, s.delta, Cp, n);
    }
    add_masked(s.delta, Cp, free_channels, n, s.targets);
    for (int i = 0; args.storage != Storage::kFloat32 && i < n; ++i) round_values(args.storage, s.targets[i], Cp);
  }

  // One step of this thread's rows: next = current + fire * d(source). `y` holds the perception of all cells, or is
  // null and the perception is computed here. next may be current if y is given.
  void update_rows(Scratch& s, int step, const float* source, const float* current, float* next, const float* y) const {
    for_groups([&](int64_t first, int count, int slot) {
      draw_fire(first, count, step, s.fire);
      for (int64_t row = first; next != current && row < first + count; ++row)
        std::memcpy(cell(next, row, -pw), cell(current, row, -pw), sizeof(float) * row_floats);
      if (y != nullptr) {
        const int firing = list_firing(s.fire, count, s.firing, s.firing_padded);
        int n = 0;
        update_listed(s, slot, firing, cell(source, first, 0), y + first * W * F * Cp, cell(next, first, 0), &n);
        update_batch(s, slot, n, false);
      } else {
        update_perceiving(s, first, count, slot, source, next);
      }
      for (int64_t row = first; row < first + count; ++row) fill_halo(next, row);
    });
  }

  // The same for rows whose perception is not stored.
  void update_perceiving(Scratch& s, int64_t first, int count, int slot, const float* source, float* next) const {
    int n = 0;
    for (int i = 0; i < count; ++i) {
      const int firing = list_firing(s.fire + int64_t{i} * W, 1, s.firing, s.firing_padded);
      const float* x = cell(source, first + i, 0);
      find_tap_rows(source, first + i, s.tap_rows);
      if (!dense) perceive_row(s, s.y_row);
      update_listed(s, slot, firing, x, dense ? nullptr : s.y_row, cell(next, first + i, 0), &n);
    }
    update_batch(s, slot, n, dense);
  }

  // Puts the listed cells into the batch of n cells, and updates them whenever it is full. x, y and next are where the
  // list begins; without y the dense perception comes from the taps.
  void update_listed(Scratch& s, int slot, int firing, const float* x, const float* y, float* next, int* n) const {
    for (int q = 0, m; q < firing; q += m) {
      m = std::min(firing - q, batch_cells - *n);
      float* v = s.v + int64_t{*n} * V;
      gather(x, s.firing_padded + q, m, Cp, x, v, V, unchanged);
      if (y != nullptr) gather(y, s.firing + q, m, F * Cp, y, v + Cp, V, unchanged);
      for (int i = 0; y == nullptr && i < m; ++i) add_cell_taps(s, *n + i, s.firing[q + i]);
      for (int i = 0; i < m; ++i) s.targets[*n + i] = next + int64_t{s.firing_padded[q + i]} * Cp;
      *n += m;
      if (*n == batch_cells) update_batch(s, slot, *n, y == nullptr), *n = 0;
    }
  }
};
