// The dense layers, packed, with norm and modulation folded into the first.

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

struct Layers {
  const Grid& grid;
  const RolloutArgs& args;
  int batch_cells;             // firing cells per product
  float *hidden_w, *hidden_b;  // [V][hp], [hp] before folding
  float* out_w;                // [hp][Cp], frozen columns zero
  float* out_b;                // [Cp], frozen ones zero; null without
  float* free_channels;        // [Cp] bit masks: zeros for frozen channels, which not even a NaN may reach
  float *folded_w, *folded_b;  // [slots] panels of [V][hp], [hp]
  double* rstd;                // [groups][hp]
  double* mean_h;              // [groups][hp] hidden_weight . mean, without bias

  explicit Layers(Grid& g) : grid(g), args(g.args) {
    batch_cells = g.V * g.hp <= 8192 ? kSmallBatch : kLargeBatch;
    hidden_w = g.take_zeros<float>(int64_t{g.V} * g.hp);
    hidden_b = g.take_zeros<float>(g.hp);
    out_w = g.take_zeros<float>(int64_t{g.hp} * g.Cp);
    out_b = args.out_bias != nullptr ? g.take_zeros<float>(g.Cp) : nullptr;
    free_channels = g.take_zeros<float>(g.Cp);
    folded_w = g.take<float>(int64_t{g.slots} * g.V * g.hp);
    folded_b = g.take<float>(int64_t{g.slots} * g.hp);
    rstd = g.take<double>(g.has_norm ? int64_t{g.groups} * g.hp : 0);
    mean_h = g.take<double>(g.has_norm ? int64_t{g.groups} * g.hp : 0);
    pack_weights();
  }

  void pack_weights() const {
    const int C = grid.C, Cp = grid.Cp, h = grid.h, n = grid.V_logical;
    for (int o = 0; o < h; ++o) {
      hidden_b[o] = args.hidden_bias[o];
      for (int v = 0; v < n; ++v) hidden_w[int64_t{grid.padded(v)} * grid.hp + o] = args.hidden_weight[o * n + v];
      for (int c = args.frozen_channels; c < C; ++c) out_w[o * Cp + c] = args.out_weight[c * h + o];
    }
    for (int c = args.frozen_channels; out_b != nullptr && c < C; ++c) out_b[c] = args.out_bias[c];
    std::memset(free_channels + args.frozen_channels, 0xFF, sizeof(float) * (C - args.frozen_channels));
  }

  Panels folded(int slot) const { return {folded_w + int64_t{slot} * grid.V * grid.hp, grid.V, grid.hp}; }

  // hidden = W v is linear in v, so its mean and variance follow from those of v: this thread's share of hidden units.
  void hidden_statistics(const double* stats) const {
    const int n = grid.V_logical, hp = grid.hp;
    int64_t begin, end;
    Grid::share((hp + kUnits - 1) / kUnits, &begin, &end);
    std::vector<double> w(int64_t{n} * kUnits);
    for (int64_t block = begin; block < end; ++block) {
      const int o0 = int(block) * kUnits, units = std::min(kUnits, hp - o0);
      std::fill(w.begin(), w.end(), 0.0);
      for (int v = 0; v < n; ++v)
        for (int q = 0; q < units; ++q) w[v * kUnits + q] = hidden_w[int64_t{grid.padded(v)} * hp + o0 + q];
      for (int g = 0; g < grid.groups; ++g)
        unit_statistics(stats + g * grid.stats_width(), w.data(), units, g * hp + o0);
    }
  }
  // Of `units` hidden units with the weights w [V_logical][kUnits]; `at` is where their statistics begin.
  void unit_statistics(const double* mean, const double* w, int units, int at) const {
    const int n = grid.V_logical;
    const double* covariance = mean + n;
    double mu[kUnits] = {}, variance[kUnits] = {};
    for (int v = 0; v < n; ++v)
      for (int q = 0; q < kUnits; ++q) mu[q] += mean[v] * w[v * kUnits + q];
    int i = 0;
    for (; i + kFormRows <= n; i += kFormRows)
      add_form<kFormRows>(covariance + int64_t{i} * n, n, w + i * kUnits, w, variance);
    for (; i < n; ++i) add_form<1>(covariance + int64_t{i} * n, n, w + i * kUnits, w, variance);
    for (int q = 0; q < units; ++q) {
      mean_h[at + q] = mu[q];
      // A bias cancels, unless it is not finite.
      const bool cancels = std::isfinite(hidden_b[(at + q) % grid.hp]);
      rstd[at + q] = cancels ? 1.0 / std::sqrt(std::max(variance[q], 0.0) + kNormEps) : NAN;
    }
  }

  // Scale and bias of hidden unit o, so that the activation's input is scale * (hidden_weight . v) + bias, in one slot.
  // `centred`: v has the mean of its group subtracted.
  void slot_affine(int slot, int o, bool centred, double* scale, double* bias) const {
    double a = 1.0, b = hidden_b[o];
    if (grid.has_norm) {
      const int at = grid.group_of_slot(slot) * grid.hp + o;
      a = value_or_zero(args.norm_weight, o) * rstd[at];
      b = value_or_zero(args.norm_bias, o) - (centred ? 0.0 : a * mean_h[at]);
    }
    if (args.scale != nullptr) {
      const int64_t first = int64_t{slot} * grid.h;
      const double m = value_or_zero(args.scale + first, o);
      a *= m;
      b = m * b + value_or_zero(args.shift + first, o);
    }
    *scale = a, *bias = b;
  }
  double value_or_zero(const float* values, int o) const { return o < grid.h ? values[o] : 0.0; }

  // Folds norm and modulation into the first dense layer of every slot, this thread's share of panels' rows.
  void fold(bool centred) const {
    const int V = grid.V, hp = grid.hp;
    int64_t begin, end;
    Grid::share(hp / kVL, &begin, &end);
    for (int slot = 0; slot < grid.slots; ++slot)
      for (int o = int(begin) * kVL; o < end * kVL; ++o) {
        double a, b;
        slot_affine(slot, o, centred, &a, &b);
        folded_b[int64_t{slot} * hp + o] = float(b);
        const PanelColumn column = panel_column(folded_w + int64_t{slot} * V * hp, V, hp, o);
        const float* w = hidden_w + o;
        for (int v = 0; v < V; ++v, w += hp) column[v] = float(a * *w);
      }
  }

  // s.hidden = finish(folded_w . s.v + folded_b) for the hidden units of the panel at j.
  template <Finish kFinish = Finish::kNone>
  void hidden_panel(const Scratch& s, int slot, int j, int n) const {
    const Panels w = folded(slot);
    const int width = w.width(j), V = grid.V;
    product<Start::kBias, kFinish>(StridedRows{s.v, V}, w.at(j), width, V, width,
                                   folded_b + int64_t{slot} * grid.hp + j, s.hidden, kPanel, n);
  }
  // The same with the activation: in registers where it costs next to nothing, else in L1.
  void active_panel(const Scratch& s, int slot, int j, int n) const {
    if (args.activation == Activation::kRelu) return hidden_panel<Finish::kRelu>(s, slot, j, n);
    if (args.activation == Activation::kLeakyRelu) return hidden_panel<Finish::kLeakyRelu>(s, slot, j, n);
    hidden_panel(s, slot, j, n);
    const int width = folded(slot).width(j);
    with_activation(args.activation, [&](auto kind) { activate_rows<kind>(s.hidden, kPanel, n, width); });
  }
};
