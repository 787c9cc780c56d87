// The norm statistics of the present state without an update: what a caller that holds a state in tiles adds up first.

static void rollout_moments(const MomentsArgs& args) {
  Workspace& workspace = Workspace::get();
  {
    Grid grid(args, workspace);
    const Perceiver perceiver(grid);
    Statistics statistics(grid, perceiver);
    Scratch* scratch = make_scratches(grid);
    statistics.counted = args.inner;
    float* state = grid.take<float>(grid.state_floats);

#pragma omp parallel num_threads(args.threads)
    {
      Scratch& s = scratch[omp_get_thread_num()];
      load_state(grid, args.state, 0, state);
#pragma omp barrier
      statistics.take_moments(s, state, nullptr);
#pragma omp barrier
      statistics.reduce(s, state, args.stats);
    }
  }
  workspace.trim();
}
