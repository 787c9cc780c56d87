// The way back through the norm's statistics: every cell feels them, as one affine map of its perception,
//   d_v += matrix^T (v - mean) + bias.
// Of a hidden unit,  d_hidden = gamma rstd (g - c1 - c2 h^),  c1, c2 means over the group's cells of g and g h^.

struct NormGradients {
  const Grid& grid;
  const RolloutArgs& args;
  const Perceiver& perceiver;
  const LayerGradients& layer_gradients;
  const ParameterGradients& parameters;
  const StateGradients& gradients;
  float *matrix, *bias;  // [groups][V][V], [groups][V]

  NormGradients(Grid& g, const Perceiver& p, const LayerGradients& l, const ParameterGradients& sums,
                const StateGradients& s)
      : grid(g), args(g.args), perceiver(p), layer_gradients(l), parameters(sums), gradients(s) {
    matrix = g.take_zeros<float>(g.has_norm ? int64_t{g.groups} * g.V * g.V : 0);
    bias = g.take_zeros<float>(int64_t{g.groups} * g.V);
  }

  // From the sums of a step, this thread's share of rows.
  void find_map() const {
    std::vector<double> constant(grid.h), linear(grid.h), row(grid.V_logical);
    for (int g = 0; g < grid.groups; ++g) {
      for (int o = 0; o < grid.h; ++o) find_unit(g, o, &constant[o], &linear[o]);
      for (int i = omp_get_thread_num(); i < grid.V_logical; i += omp_get_num_threads())
        find_row(g, i, constant, linear, row);
    }
  }
  void find_unit(int g, int o, double* constant, double* linear) const {
    const double inverse = 1.0 / (double(grid.cells) * (grid.groups > 1 ? 1 : grid.B));
    const int hp = grid.hp;
    double c1 = 0, c2 = 0;
    for (int slot = grid.first_slot(g); slot < grid.last_slot(g); ++slot) {
      c1 += parameters.modulation(slot, o) * parameters.sum_g[int64_t{slot} * hp + o];
      c2 += parameters.modulation(slot, o) * parameters.sum_gh[int64_t{slot} * hp + o];
    }
    const double r = parameters.layers.rstd[g * hp + o], a = args.norm_weight[o] * r;
    *constant = a * c1 * inverse, *linear = a * c2 * inverse * r;
  }
  void find_row(int g, int i, const std::vector<double>& constant, const std::vector<double>& linear,
                std::vector<double>& row) const {
    const int n = grid.V_logical;
    double sum = 0;
    std::fill(row.begin(), row.end(), 0.0);
    for (int o = 0; o < grid.h; ++o) {
      const float* w = args.hidden_weight + int64_t{o} * n;
      const double through = linear[o] * w[i];
      sum += constant[o] * w[i];
      for (int j = 0; j < n; ++j) row[j] += through * w[j];
    }
    const int64_t ip = int64_t{g} * grid.V + grid.padded(i);
    bias[ip] = float(-sum);
    for (int j = 0; j < n; ++j) matrix[ip * grid.V + grid.padded(j)] = float(-row[j]);
  }

  // At every cell; y is the perception of all of them.
  void apply(Scratch& s, const float* source, const float* y) const {
    const int V = grid.V, W = grid.W, Cp = grid.Cp, d_y_cell = gradients.d_y_cell;
    grid.for_chunks([&](int chunk) {
      const int64_t g = grid.groups > 1 ? grid.sample_of_chunk(chunk) : 0;
      for (int64_t row = grid.chunk_begin(chunk); row < grid.chunk_end(chunk); ++row)
        for (int w0 = 0; w0 < W; w0 += kSmallBatch) {
          const int n = std::min(kSmallBatch, W - w0);
          perceiver.centred(grid.cell(source, row, w0), y + (row * W + w0) * d_y_cell, layer_gradients.centres + g * V,
                            n, s.v);
          product<Start::kBias>(StridedRows{s.v, V}, matrix + g * V * V, V, V, V, bias + g * V, s.d_v, V, n);
          for (int i = 0; i < n; ++i) {
            const float* d_v = s.d_v + int64_t{i} * V;
            add(d_v, gradients.d_source + (row * W + w0 + i) * Cp, Cp);
            add(d_v + Cp, gradients.d_y_at(row, w0 + i), d_y_cell);
          }
        }
    });
  }
};
