// The backward rollout. Only states are kept; a segment of steps is replayed from its first state, then each step runs
// backward in three sweeps:
//   cells     recompute the firing cells and take their gradients back to the perception v = (x, y)
//   (norm)    every cell feels the batch statistics: one affine map of v, from sums over the firing cells
//   filters   take the gradient of y through the adjoint of the convolution, and to the filters' weights
// Dense filters without a norm take one sweep (FusedSweep), as nothing but the firing cells adds to the gradient of y.

struct Backward {
  const BackwardArgs& args;
  Grid grid;
  Perceiver perceiver;
  Layers layers;
  Statistics statistics;
  Update update, raw_update;
  Scratch* scratch;
  GradientSums* sums;
  StateGradients gradients;
  LayerGradients layer_gradients;
  DenseAdjoint dense_adjoint;
  DepthwiseAdjoint depthwise_adjoint;
  ParameterGradients parameters;
  NormGradients norm;
  CellSweep cells;
  FusedSweep fused;
  float* y;          // perception of all cells [cells][F*Cp]; not if fused
  float* source;     // perceive_from, or null
  int segment;       // steps from one kept state to the next
  float* unclamped;  // with a clamp: the new state before it
  float** states;    // [segment]

  Backward(const BackwardArgs& a, Workspace& workspace)
      : args(a),
        grid(a, workspace),
        perceiver(grid),
        layers(grid),
        statistics(grid, perceiver),
        update{grid, perceiver, layers},
        raw_update{grid, perceiver, layers, true},
        scratch(make_scratches(grid)),
        sums(make_sums(grid)),
        gradients(grid, a),
        layer_gradients(grid, layers),
        dense_adjoint(grid, perceiver),
        depthwise_adjoint(grid, perceiver, gradients),
        parameters(grid, a, layers, sums),
        norm(grid, perceiver, layer_gradients, parameters, gradients),
        cells{grid, perceiver, layers, layer_gradients, gradients},
        fused{grid, perceiver, layers, layer_gradients, dense_adjoint} {
    y = grid.take<float>(gradients.fused ? 0 : grid.rows * grid.W * perceiver.y_cell);
    source = a.perceive_from != nullptr ? grid.take<float>(grid.state_floats) : nullptr;
    unclamped = a.has_clamp ? grid.take<float>(grid.state_floats) : nullptr;
    segment = std::max(1, std::min(a.keep_every, a.steps));
    states = grid.take<float*>(segment);
    for (int i = 0; i < segment; ++i) states[i] = grid.take<float>(grid.state_floats);
  }

  const double* stats_of(int step) const {
    return grid.has_norm ? args.stats + step * grid.groups * grid.stats_width() : nullptr;
  }

  // states[i] is the state before step `begin + i`, for all `count` steps of a segment. False if interrupted.
  // `num_done` counts the steps of either direction.
  bool replay(Scratch& s, int begin, int count, int64_t& num_done) const {
    const int64_t state_values = grid.rows * grid.W * grid.C;
    if (begin == 0)
      load_state(grid, args.state, 0, states[0]);
    else
      load_state(grid, args.kept, (begin / segment - 1) * state_values, states[0]);
#pragma omp barrier
    for (int i = 0; i + 1 < count; ++i) {
      grid.begin_step(num_done);
      const float* z = source != nullptr ? source : states[i];
      if (grid.has_norm) {
        layers.hidden_statistics(stats_of(begin + i));
#pragma omp barrier
        layers.fold(false);
        statistics.perceive_all(s, z, y);
      }
#pragma omp barrier
      update.update_rows(s, begin + i, z, states[i], states[i + 1], grid.has_norm ? y : nullptr);
#pragma omp barrier
      if (grid.ends_at(num_done++)) return false;
    }
    return true;
  }

  // Through the clamp, in place: the step is computed again to see what it changed.
  void clamp_bwd(Scratch& s, int step, const float* z, const float* state, float* d) const {
    if (grid.has_norm) {
      layers.hidden_statistics(stats_of(step));
#pragma omp barrier
      layers.fold(false);
      statistics.perceive_all(s, z, y);
#pragma omp barrier
    }
    raw_update.update_rows(s, step, z, state, unclamped, grid.has_norm ? y : nullptr);
    grid.for_rows([&](int64_t row) {
      clamp_cells_bwd(grid.cell(unclamped, row, 0), d + row * grid.W * grid.Cp, grid.Cp, layers.free_channels, grid.W,
                      args.clamp[0], args.clamp[1]);
    });
#pragma omp barrier
  }

  // From the gradient d_from of the new state to that of the state before in d_to.
  void step_fused(Scratch& s, GradientSums& sum, Halo& halo, int step, const float* z, const float* d_from,
                  float* d_to) const {
    const int row_floats = grid.W * grid.Cp;
    if (source == nullptr)
      grid.for_rows([&](int64_t row) { copy(d_from + row * row_floats, d_to + row * row_floats, row_floats); });
    fused.sweep(s, sum, halo, step, z, d_from, d_to);
#pragma omp barrier
    dense_adjoint.fetch_halos(halo, d_to);
    parameters.sweep(nullptr);
#pragma omp barrier
  }

  // The same in place, in d_state.
  void step_bwd(Scratch& s, GradientSums& sum, Halo& halo, int step, const float* z,
                std::vector<Target>& targets) const {
    if (grid.has_norm) {
      layer_gradients.fold(stats_of(step));
#pragma omp barrier
    }
    cells.sweep(s, sum, step, z, y, targets);
#pragma omp barrier
    parameters.sweep(stats_of(step));
#pragma omp barrier
    if (grid.has_norm) {
      norm.find_map();
#pragma omp barrier
      norm.apply(s, z, y);
#pragma omp barrier
    }
    filters_sweep(s, sum, halo, z);
#pragma omp barrier
    if (grid.dense) dense_adjoint.fetch_halos(halo, gradients.d_source);
  }
  void filters_sweep(Scratch& s, GradientSums& sum, Halo& halo, const float* z) const {
    grid.for_rows([&](int64_t row) {
      if (grid.dense)
        dense_adjoint.spread_row(s, sum, halo, row, z, gradients.d_source, gradients.d_y_at(row, 0));
      else
        depthwise_adjoint.sweep_row(s, sum, row, z);
    });
    sum.fold_filters();
  }

  // All of the calling thread's work.
  void run(int thread) const {
    Scratch& s = scratch[thread];
    GradientSums& sum = sums[thread];
    Halo& halo = dense_adjoint.halos[thread];
    float *d_from = gradients.d_state, *d_to = gradients.d_next;
    std::vector<Target> targets;
    gradients.load(args.d_out);
    if (source != nullptr) load_state(grid, args.perceive_from, 0, source);
    if (!grid.has_norm) layer_gradients.fold(nullptr);
    if (grid.dense) dense_adjoint.make_halo(halo);
    int64_t num_done = 0;
    bool goes_on = true;
    for (int begin = (args.steps - 1) / segment * segment; begin >= 0 && goes_on; begin -= segment) {
      const int count = std::min(segment, args.steps - begin);
      goes_on = replay(s, begin, count, num_done);
      for (int i = count - 1; i >= 0 && goes_on; --i) {
        grid.begin_step(num_done);
        const float* z = source != nullptr ? source : states[i];
        if (args.has_clamp) clamp_bwd(s, begin + i, z, states[i], d_from);
        if (gradients.fused) {
          step_fused(s, sum, halo, begin + i, z, d_from, d_to);
          if (source == nullptr) std::swap(d_from, d_to);
        } else {
          step_bwd(s, sum, halo, begin + i, z, targets);
        }
        goes_on = !grid.ends_at(num_done++);
      }
    }
#pragma omp barrier
    gradients.store(d_from, args.d_state);
    if (source != nullptr) gradients.store(gradients.d_source, args.d_perceive_from);
    parameters.store();
  }
};

static void rollout_bwd(const BackwardArgs& args) {
  Workspace& workspace = Workspace::get();
  {
    const Backward backward(args, workspace);
#pragma omp parallel num_threads(args.threads)
    backward.run(omp_get_thread_num());
  }
  workspace.trim();
}
