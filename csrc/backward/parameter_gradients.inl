// Gradients of norm, modulation and the first dense layer, from P = sum g v^T and s = sum g of each slot and step,
// where g is the gradient of the activation's input; and the way of all sums into the caller's arrays.

// sum over i of a[i][0] b[i]
static double dot(const float* a, int64_t a_stride, const double* b, int n) {
  double sum = 0;
  for (const double* end = b + n; b != end; a += a_stride) sum += double(*a) * *b++;
  return sum;
}

struct ParameterGradients {
  const Grid& grid;
  const BackwardArgs& args;
  const Layers& layers;
  GradientSums* sums;      // of each thread
  double *sum_g, *sum_gh;  // [slots][hp]: sums of g and of g * normalised hidden, of the current step
  double *hidden_w, *hidden_b, *norm_w, *norm_b, *scale, *shift;

  ParameterGradients(Grid& g, const BackwardArgs& a, const Layers& l, GradientSums* s)
      : grid(g), args(a), layers(l), sums(s) {
    const int64_t hp = g.hp;
    sum_g = g.take<double>(g.slots * hp), sum_gh = g.take<double>(g.slots * hp);
    hidden_w = g.take_zeros<double>(hp * g.V), hidden_b = g.take_zeros<double>(hp);
    norm_w = g.take_zeros<double>(hp), norm_b = g.take_zeros<double>(hp);
    scale = g.take_zeros<double>(g.B * hp), shift = g.take_zeros<double>(g.B * hp);
  }

  double modulation(int slot, int o) const {
    return args.scale != nullptr ? args.scale[int64_t{slot} * grid.h + o] : 1.0;
  }

  // This thread's share of hidden units of one step. With norm, v is centred, and
  //   d_hidden_weight = a (P - rstd c2 W Cov),  c2 = sum of g * normalised hidden    (the mean's share vanishes).
  void sweep(const double* stats) const {
    int64_t begin, end;
    Grid::share(grid.hp, &begin, &end);
    end = std::min<int64_t>(end, grid.h);
    std::vector<double> outer(grid.V), through(grid.V);
    for (int o = int(begin); o < end; ++o)
      for (int slot = 0; slot < grid.slots; ++slot) add_slot(slot, o, outer.data());
    if (!grid.has_norm) return;
    for (int o = int(begin); o < end; ++o)
      for (int g = 0; g < grid.groups; ++g)
        subtract_covariance(g, o, stats + g * grid.stats_width() + grid.V_logical, through.data());
  }
  // Takes the sums of all threads in their order, and leaves zeros.
  void add_slot(int slot, int o, double* outer) const {
    const int V = grid.V, hp = grid.hp;
    double s = 0;
    std::fill(outer, outer + V, 0.0);
    for (int t = 0; t < omp_get_num_threads(); ++t) {
      s += sums[t].hidden_slots[int64_t{slot} * hp + o];
      sums[t].hidden_slots[int64_t{slot} * hp + o] = 0;
      double* p = sums[t].outer_slots + (int64_t{slot} * hp + o) * V;
      for (int v = 0; v < V; ++v) outer[v] += p[v], p[v] = 0;
    }
    const double gh = dot(layers.hidden_w + o, hp, outer, V);  // sum of g * (W v)
    finish_slot(slot, o, s, gh, outer);
  }
  // One slot's share, except for the norm's term through the covariance.
  void finish_slot(int slot, int o, double s, double gh, const double* outer) const {
    const int V = grid.V, hp = grid.hp;
    const double m = modulation(slot, o);
    double a = m, input = gh + layers.hidden_b[o] * s;  // sum of g * (what modulation scales)
    if (grid.has_norm) {
      const double r = layers.rstd[grid.group_of_slot(slot) * hp + o];
      gh *= r;  // now with the normalised hidden
      norm_w[o] += m * gh, norm_b[o] += m * s;
      input = args.norm_weight[o] * gh + args.norm_bias[o] * s;
      a = m * args.norm_weight[o] * r;
    } else {
      hidden_b[o] += m * s;
    }
    if (args.scale != nullptr) scale[int64_t{slot} * hp + o] += input, shift[int64_t{slot} * hp + o] += s;
    for (int v = 0; v < V; ++v) hidden_w[int64_t{o} * V + v] += a * outer[v];
    sum_g[int64_t{slot} * hp + o] = s, sum_gh[int64_t{slot} * hp + o] = gh;
  }
  void subtract_covariance(int g, int o, const double* covariance, double* through) const {
    const int n = grid.V_logical;
    double c2 = 0;
    for (int slot = grid.first_slot(g); slot < grid.last_slot(g); ++slot)
      c2 += modulation(slot, o) * sum_gh[int64_t{slot} * grid.hp + o];
    const double r = layers.rstd[g * grid.hp + o], factor = args.norm_weight[o] * r * r * c2;
    std::fill(through, through + n, 0.0);
    for (int i = 0; i < n; ++i) {
      const double w = factor * args.hidden_weight[int64_t{o} * n + i];
      for (int j = 0; j < n; ++j) through[j] += w * covariance[int64_t{i} * n + j];
    }
    for (int j = 0; j < n; ++j) hidden_w[int64_t{o} * grid.V + grid.padded(j)] -= through[j];
  }

  // Everything -> the caller's arrays: this thread's share of them.
  void store() const {
    int64_t begin, end;
    Grid::share(int64_t{grid.F} * grid.C, &begin, &end);
    for (int64_t filter = begin; filter < end; ++filter) store_filter(int(filter / grid.C), int(filter % grid.C));
    Grid::share(grid.h, &begin, &end);
    for (int64_t o = begin; o < end; ++o) store_hidden(o);
    Grid::share(args.d_out_bias != nullptr ? grid.C : 0, &begin, &end);
    for (int64_t c = begin; c < end; ++c) args.d_out_bias[c] = total(&GradientSums::out_b, c);
  }
  // The sums of all threads in their order.
  float total(Sum GradientSums::* member, int64_t i) const {
    double sum = 0;
    for (int t = 0; t < args.threads; ++t) sum += (sums[t].*member).total[i];
    return float(sum);
  }
  void store_filter(int f, int co) const {
    const int C = grid.C, Cp = grid.Cp, taps = grid.tap_count * grid.kw, inputs = grid.dense ? C : 1;
    args.d_perceive_bias[f * C + co] = total(&GradientSums::perceive_b, f * Cp + co);
    float* weights = args.d_perceive_weight + (int64_t{f} * C + co) * inputs * taps;
    for (int t = 0; t < taps; ++t) {
      if (!grid.dense) weights[t] = total(&GradientSums::perceive_w, (int64_t{f} * taps + t) * Cp + co);
      for (int ci = 0; grid.dense && ci < C; ++ci)
        weights[ci * taps + t] = total(&GradientSums::perceive_w, int64_t{t * Cp + ci} * grid.F * Cp + f * Cp + co);
    }
  }
  void store_hidden(int64_t o) const {
    const int h = grid.h, n = grid.V_logical;
    for (int c = 0; c < grid.C; ++c)
      args.d_out_weight[c * h + o] = c < args.frozen_channels ? 0.0f : total(&GradientSums::out_w, o * grid.Cp + c);
    for (int v = 0; v < n; ++v) args.d_hidden_weight[o * n + v] = float(hidden_w[o * grid.V + grid.padded(v)]);
    args.d_hidden_bias[o] = float(hidden_b[o]);
    if (grid.has_norm) args.d_norm_weight[o] = float(norm_w[o]), args.d_norm_bias[o] = float(norm_b[o]);
    for (int b = 0; args.scale != nullptr && b < grid.B; ++b) {
      args.d_scale[int64_t{b} * h + o] = float(scale[int64_t{b} * grid.hp + o]);
      args.d_shift[int64_t{b} * h + o] = float(shift[int64_t{b} * grid.hp + o]);
    }
  }
};
