// The norm statistics of the present state without an update: what a caller that holds a state in tiles adds up first.

static void take_moments(const MomentsArgs& args) {
  Workspace& workspace = Workspace::get();
  {
    Engine e(args, workspace);
    e.counted = args.inner;
    float* state = e.take<float>(e.state_floats);

#pragma omp parallel num_threads(args.threads)
    {
      Scratch& s = e.scratch[omp_get_thread_num()];
      e.load_state(args.state, 0, state);
#pragma omp barrier
      e.perceive_all(s, state, nullptr, true);
#pragma omp barrier
      e.reduce_moments(s, state, args.stats);
    }
  }
  workspace.trim();
}
