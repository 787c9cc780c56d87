// The backward rollout. Only states are kept; a segment of steps is replayed from its first state, then each step runs
// backward in three sweeps:
//   cells     recompute the firing cells and take their gradients back to the perception v = (x, y)
//   (norm)    every cell feels the batch statistics: one affine map of v, from sums over the firing cells
//   filters   take the gradient of y through the adjoint of the convolution, and to the filters' weights
// Dense filters without a norm take one sweep (fused_sweep), as nothing but the firing cells adds to the gradient of y.

struct Backward : CellGradients {
  const BackwardArgs& out;

  Backward(const BackwardArgs& a, Workspace& w) : CellGradients(a, w), out(a) {}

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

  // The sums of all threads in their order -> the caller's arrays: this thread's share of them.
  void store_parameters() const {
    int64_t begin, end;
    share(int64_t{F} * C, &begin, &end);
    for (int64_t filter = begin; filter < end; ++filter) store_filter(int(filter / C), int(filter % C));
    share(h, &begin, &end);
    for (int64_t o = begin; o < end; ++o) store_hidden(o);
  }
  float total(Sum GradientSums::* member, int64_t i) const {
    double sum = 0;
    for (int t = 0; t < args.threads; ++t) sum += (sums[t].*member).total[i];
    return float(sum);
  }
  void store_filter(int f, int co) const {
    const int taps = tap_count * kw, inputs = dense ? C : 1;
    out.d_perceive_bias[f * C + co] = total(&GradientSums::perceive_b, f * Cp + co);
    float* weights = out.d_perceive_weight + (int64_t{f} * C + co) * inputs * taps;
    for (int t = 0; t < taps; ++t) {
      if (!dense) weights[t] = total(&GradientSums::perceive_w, (int64_t{f} * taps + t) * Cp + co);
      for (int ci = 0; dense && ci < C; ++ci)
        weights[ci * taps + t] = total(&GradientSums::perceive_w, int64_t{t * Cp + ci} * d_y_cell + f * Cp + co);
    }
  }
  void store_hidden(int64_t o) const {
    for (int c = 0; c < C; ++c)
      out.d_out_weight[c * h + o] = c < args.frozen_channels ? 0.0f : total(&GradientSums::out_w, o * Cp + c);
    for (int v = 0; v < V_logical; ++v)
      out.d_hidden_weight[o * V_logical + v] = float(grad_hidden_w[o * V + padded(v)]);
    out.d_hidden_bias[o] = float(grad_hidden_b[o]);
    if (has_norm) out.d_norm_weight[o] = float(grad_norm_w[o]), out.d_norm_bias[o] = float(grad_norm_b[o]);
    for (int b = 0; args.scale != nullptr && b < B; ++b) {
      out.d_scale[int64_t{b} * h + o] = float(grad_scale[int64_t{b} * hp + o]);
      out.d_shift[int64_t{b} * h + o] = float(grad_shift[int64_t{b} * hp + o]);
    }
  }

  // ---- the rollout -------------------------------------------------------------------------------------

  const double* stats_of(int step) const { return has_norm ? args.stats + step * groups * stats_width() : nullptr; }

  // states[i + 1] = step `begin + i` of states[i], for all steps of a segment but the last. False if interrupted.
  // `num_done` counts the steps of either direction.
  bool replay(Scratch& s, int begin, int count, float* const* states, const float* source, int64_t& num_done) const {
    for (int i = 0; i + 1 < count; ++i) {
      begin_step(num_done);
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
      if (ends_at(num_done++)) return false;
    }
    return true;
  }

  void step_fused(Scratch& s, GradientSums& sum, Halo& halo, int step, const float* source, const float* d_from,
                  float* d_to) const {
    if (d_source == d_state) for_rows([&](int64_t row) { copy(d_from + row * W * Cp, d_to + row * W * Cp, W * Cp); });
    fused_sweep(s, sum, halo, step, source, d_from, d_to);
#pragma omp barrier
    fetch_halos(halo, d_to);
    parameter_sweep(nullptr);
#pragma omp barrier
  }

  void step_bwd(Scratch& s, GradientSums& sum, Halo& halo, int step, const float* source,
                std::vector<Target>& targets) const {
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
    filters_sweep(s, sum, halo, source);
    sum.fold_filters();
#pragma omp barrier
    if (dense) fetch_halos(halo, d_source);
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
      Halo& halo = e.halos[omp_get_thread_num()];
      float *d_from = e.d_state, *d_to = e.d_next;
      std::vector<Backward::Target> targets;
      e.load_gradient();
      if (source != nullptr) e.load_state(args.perceive_from, 0, source);
      if (!e.has_norm) e.fold_step(nullptr);
      if (e.dense) e.make_halo(halo);
      int64_t num_done = 0;
      bool goes_on = true;
      for (int index = (args.steps + segment - 1) / segment - 1; index >= 0 && goes_on; --index) {
        const int begin = index * segment, count = std::min(segment, args.steps - begin);
        if (index == 0)
          e.load_state(args.state, 0, states[0]);
        else
          e.load_state(args.kept, (index - 1) * state_values, states[0]);
#pragma omp barrier
        goes_on = e.replay(s, begin, count, states, source, num_done);
        for (int i = count - 1; i >= 0 && goes_on; --i) {
          e.begin_step(num_done);
          const float* z = source != nullptr ? source : states[i];
          if (e.fused) {
            e.step_fused(s, sum, halo, begin + i, z, d_from, d_to);
            if (source == nullptr) std::swap(d_from, d_to);
          } else {
            e.step_bwd(s, sum, halo, begin + i, z, targets);
          }
          goes_on = !e.ends_at(num_done++);
        }
      }
#pragma omp barrier
      e.store_gradient(d_from, args.d_state);
      if (source != nullptr) e.store_gradient(e.d_source, args.d_perceive_from);
      e.store_parameters();
    }
  }
  workspace.trim();
}
