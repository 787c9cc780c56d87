// The forward rollout: all steps in one parallel region. With norm a step is two sweeps (perception with its moments,
// then the firing cells, in place); without, one sweep from one buffer into the other.

static void rollout_fwd(const ForwardArgs& args) {
  Workspace& workspace = Workspace::get();
  {
    Engine e(args, workspace);
    const bool in_place = e.has_norm;
    float* current = e.take<float>(e.state_floats);
    float* next = in_place ? current : e.take<float>(e.state_floats);
    float* source = args.perceive_from != nullptr ? e.take<float>(e.state_floats) : nullptr;
    float* y = e.has_norm ? e.take<float>(e.rows * e.W * e.F * e.Cp) : nullptr;
    const int64_t state_values = e.rows * e.W * e.C;

#pragma omp parallel num_threads(args.threads)
    {
      Scratch& s = e.scratch[omp_get_thread_num()];
      float *from = current, *to = next;
      e.load_state(args.state, 0, from);
      if (source != nullptr) e.load_state(args.perceive_from, 0, source);
      if (!e.has_norm) e.fold_weights(false);
#pragma omp barrier
      for (int step = 0; step < args.steps; ++step) {
        e.begin_step(step);
        const float* z = source != nullptr ? source : from;
        if (e.has_norm) {
          double* stats = args.stats != nullptr ? args.stats + step * e.groups * e.stats_width() : e.step_stats;
          e.perceive_all(s, z, y, true);
#pragma omp barrier
          e.reduce_moments(s, z, stats);
#pragma omp barrier
          e.hidden_statistics(stats);
#pragma omp barrier
          e.fold_weights(false);
#pragma omp barrier
        }
        e.update_rows(s, step, z, from, to, y);
        if (args.kept != nullptr && (step + 1) % args.keep_every == 0 && step + 1 < args.steps)
          e.store_state(to, args.kept, ((step + 1) / args.keep_every - 1) * state_values);
        std::swap(from, to);
#pragma omp barrier
        if (e.ends_at(step)) break;
      }
      e.store_state(from, args.out, 0);
    }
  }
  workspace.trim();
}
