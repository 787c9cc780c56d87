// The update of the firing cells.

struct Update {
  const Grid& grid;
  const Perceiver& perceiver;
  const Layers& layers;
  bool is_raw = false;  // neither clamped nor rounded: what the clamp's gradient has to see

  // targets[i] += out_weight . act(hidden(v[i])) + out_bias for the n gathered cells.
  void update_batch(Scratch& s, int slot, int n, bool gather_dense) const {
    if (n == 0) return;
    const int Cp = grid.Cp, hp = grid.hp;
    if (gather_dense) perceiver.perceive_dense(s, n, s.v + Cp, grid.V);
    for (int j = 0; j < hp; j += kPanel) {
      const int width = layers.folded(slot).width(j);
      layers.active_panel(s, slot, j, n);
      clear_columns(s.hidden, kPanel, std::max(grid.h - j, 0), width, n);
      const FixedRows<kPanel> a{s.hidden};
      if (j == 0 && layers.out_b != nullptr)
        product<Start::kBias>(a, layers.out_w, Cp, width, Cp, layers.out_b, s.delta, Cp, n);
      else if (j == 0)
        product<Start::kZero>(a, layers.out_w, Cp, width, Cp, nullptr, s.delta, Cp, n);
      else
        product<Start::kAccumulate>(a, layers.out_w + int64_t{j} * Cp, Cp, width, Cp, nullptr, s.delta, Cp, n);
    }
    add_masked(s.delta, Cp, layers.free_channels, n, s.targets);
    if (is_raw || grid.args.has_clamp || grid.args.storage == Storage::kFloat32) return;
    for (int i = 0; i < n; ++i) round_values(grid.args.storage, s.targets[i], Cp);
  }

  // All cells of a row, as those that do not fire are clamped too.
  void clamp_row(float* row) const {
    const RolloutArgs& args = grid.args;
    clamp_cells(row, grid.Cp, layers.free_channels, grid.W, args.clamp[0], args.clamp[1]);
    if (args.storage != Storage::kFloat32) round_values(args.storage, row, grid.W * grid.Cp);
  }

  // One step of this thread's rows: next = clamp(current + fire * d(source)). `y` holds the perception of all cells, or
  // is null and the perception is computed here. next may be current if y is given.
  void update_rows(Scratch& s, int step, const float* source, const float* current, float* next, const float* y) const {
    grid.for_groups([&](int64_t first, int count, int slot) {
      draw_fire(grid, first, count, step, s.fire);
      for (int64_t row = first; next != current && row < first + count; ++row)
        std::memcpy(grid.cell(next, row, -grid.pw), grid.cell(current, row, -grid.pw), sizeof(float) * grid.row_floats);
      if (y != nullptr) {
        const int firing = list_firing(grid, s.fire, count, s.firing, s.firing_padded);
        int n = 0;
        update_listed(s, slot, firing, grid.cell(source, first, 0), y + first * grid.W * perceiver.y_cell,
                      grid.cell(next, first, 0), &n);
        update_batch(s, slot, n, false);
      } else {
        update_perceiving(s, first, count, slot, source, next);
      }
      for (int64_t row = first; row < first + count; ++row) {
        if (grid.args.has_clamp && !is_raw) clamp_row(grid.cell(next, row, 0));
        fill_halo(grid, next, row);
      }
    });
  }

  // The same for rows whose perception is not stored.
  void update_perceiving(Scratch& s, int64_t first, int count, int slot, const float* source, float* next) const {
    int n = 0;
    for (int i = 0; i < count; ++i) {
      const int firing = list_firing(grid, s.fire + int64_t{i} * grid.W, 1, s.firing, s.firing_padded);
      find_tap_rows(grid, source, first + i, s.tap_rows);
      if (!grid.dense) perceiver.perceive_row(s, s.y_row);
      update_listed(s, slot, firing, grid.cell(source, first + i, 0), grid.dense ? nullptr : s.y_row,
                    grid.cell(next, first + i, 0), &n);
    }
    update_batch(s, slot, n, grid.dense);
  }

  // Puts the listed cells into the batch of n cells, and updates them whenever it is full. x, y and next are where the
  // list begins; without y the dense perception comes from the taps.
  void update_listed(Scratch& s, int slot, int firing, const float* x, const float* y, float* next, int* n) const {
    const int V = grid.V, Cp = grid.Cp;
    for (int q = 0, m; q < firing; q += m) {
      m = std::min(firing - q, layers.batch_cells - *n);
      float* v = s.v + int64_t{*n} * V;
      gather(x, s.firing_padded + q, m, Cp, x, v, V, unchanged);
      if (y != nullptr) gather(y, s.firing + q, m, perceiver.y_cell, y, v + Cp, V, unchanged);
      for (int i = 0; y == nullptr && i < m; ++i) perceiver.add_cell_taps(s, *n + i, s.firing[q + i]);
      for (int i = 0; i < m; ++i) s.targets[*n + i] = next + int64_t{s.firing_padded[q + i]} * Cp;
      *n += m;
      if (*n == layers.batch_cells) update_batch(s, slot, *n, y == nullptr), *n = 0;
    }
  }
};
