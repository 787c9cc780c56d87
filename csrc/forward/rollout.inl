// The forward rollout: all steps in one parallel region. With norm a step is two sweeps (perception with its moments,
// then the firing cells, in place); without, one sweep from one buffer into the other.

struct Forward {
  Grid grid;
  Perceiver perceiver;
  Layers layers;
  Statistics statistics;
  Update update;
  Scratch* scratch;
  float *current, *next;  // padded states; the same one with norm
  float* source;          // perceive_from, or null
  float* y;               // with norm: the perception of all cells

  Forward(const ForwardArgs& args, Workspace& workspace)
      : grid(args, workspace),
        perceiver(grid),
        layers(grid),
        statistics(grid, perceiver),
        update{grid, perceiver, layers} {
    scratch = make_scratches(grid);
    current = grid.take<float>(grid.state_floats);
    next = grid.has_norm ? current : grid.take<float>(grid.state_floats);
    source = args.perceive_from != nullptr ? grid.take<float>(grid.state_floats) : nullptr;
    y = grid.has_norm ? grid.take<float>(grid.rows * grid.W * perceiver.y_cell) : nullptr;
  }

  // The perception of all cells into y, and its statistics into the weights.
  void normalise(Scratch& s, const float* z, double* stats) const {
    statistics.take_moments(s, z, y);
#pragma omp barrier
    statistics.reduce(s, z, stats);
#pragma omp barrier
    layers.hidden_statistics(stats);
#pragma omp barrier
    layers.fold(false);
#pragma omp barrier
  }
};

static void rollout_fwd(const ForwardArgs& args) {
  Workspace& workspace = Workspace::get();
  {
    const Forward f(args, workspace);
    const Grid& grid = f.grid;
    const int64_t state_values = grid.rows * grid.W * grid.C, stats_values = grid.groups * grid.stats_width();

#pragma omp parallel num_threads(args.threads)
    {
      Scratch& s = f.scratch[omp_get_thread_num()];
      float *from = f.current, *to = f.next;
      load_state(grid, args.state, 0, from);
      if (f.source != nullptr) load_state(grid, args.perceive_from, 0, f.source);
      if (!grid.has_norm) f.layers.fold(false);
#pragma omp barrier
      for (int step = 0; step < args.steps; ++step) {
        grid.begin_step(step);
        const float* z = f.source != nullptr ? f.source : from;
        if (grid.has_norm)
          f.normalise(s, z, args.stats != nullptr ? args.stats + step * stats_values : f.statistics.of_step);
        f.update.update_rows(s, step, z, from, to, f.y);
        if (args.kept != nullptr && (step + 1) % args.keep_every == 0 && step + 1 < args.steps)
          store_state(grid, to, args.kept, ((step + 1) / args.keep_every - 1) * state_values);
        std::swap(from, to);
#pragma omp barrier
        if (grid.ends_at(step)) break;
      }
      store_state(grid, from, args.out, 0);
    }
  }
  workspace.trim();
}
