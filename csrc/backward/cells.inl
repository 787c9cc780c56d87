// The sweep over the firing cells of one step: gathered into batches, and their gradients brought back to where they
// were read.

// Where the gradient of a firing cell's perception goes.
struct Target {
  float *d_x, *d_y;
};

// With all of the perception's gradient stored: depthwise filters, or a norm.
struct CellSweep {
  const Grid& grid;
  const Perceiver& perceiver;
  const Layers& layers;
  const LayerGradients& layer_gradients;
  const StateGradients& gradients;

  void batch(Scratch& s, GradientSums& sum, int slot, int n, const Target* targets) const {
    if (n == 0) return;
    const int V = grid.V, Cp = grid.Cp, d_y_cell = gradients.d_y_cell;
    layer_gradients.batch(s, sum, slot, n);
    for (int i = 0; i < n; ++i) {
      const float* d_v = s.d_v + int64_t{i} * V;
      add(d_v, targets[i].d_x, Cp);
      copy(d_v + Cp, targets[i].d_y, d_y_cell);
    }
  }

  // The perception of all cells into y, gradients of firing cells into d_source and d_y; d_y is zero elsewhere.
  void sweep(Scratch& s, GradientSums& sum, int step, const float* source, float* y,
             std::vector<Target>& targets) const {
    int previous = -1;
    targets.resize(kLargeBatch);
    grid.for_groups([&](int64_t first, int count, int slot) {
      if (slot != previous) sum.select_slot(slot);
      previous = slot;
      draw_fire(grid, first, count, step, s.fire);
      const int firing = list_firing(grid, s.fire, count, s.firing, s.firing_padded);
      int n = 0, q = 0;
      for (int r = 0; r < count; ++r) {
        int end = q;
        while (end < firing && s.firing[end] < (r + 1) * grid.W) ++end;
        std::memset(gradients.d_y_row(first + r), 0, sizeof(float) * gradients.d_y_row_floats);
        find_tap_rows(grid, source, first + r, s.tap_rows);
        perceiver.perceive_row(s, y + (first + r) * grid.W * gradients.d_y_cell);
        for (int m; q < end; q += m) {
          m = std::min(end - q, layers.batch_cells - n);
          add_listed(s, slot, first, q, m, source, y, n, targets.data());
          n += m;
          if (n == layers.batch_cells) batch(s, sum, slot, n, targets.data()), n = 0;
        }
      }
      batch(s, sum, slot, n, targets.data());
    });
    sum.fold_cells();
  }

  // Cells q to q + m of the list become number n and following of the batch.
  void add_listed(Scratch& s, int slot, int64_t first, int q, int m, const float* source, const float* y, int n,
                  Target* targets) const {
    const int V = grid.V, Cp = grid.Cp, W = grid.W, d_y_cell = gradients.d_y_cell;
    const float* centre = layer_gradients.centres + int64_t{grid.group_of_slot(slot)} * V;
    const int *at = s.firing + q, *padded_at = s.firing_padded + q;
    const int64_t origin = first * W;
    float *v = s.v + int64_t{n} * V, *d_source = gradients.d_source;
    gather(grid.cell(source, first, 0), padded_at, m, Cp, centre, v, V, difference);
    gather(y + origin * d_y_cell, at, m, d_y_cell, centre + Cp, v + Cp, V, difference);
    gather(gradients.d_state + origin * Cp, at, m, Cp, layers.free_channels, s.d_delta + int64_t{n} * Cp, Cp, masked);
    for (int i = 0; i < m; ++i)
      targets[n + i] = {d_source + (origin + at[i]) * Cp, gradients.d_y_at(first + at[i] / W, at[i] % W)};
  }
};

// Dense filters without a norm: a batch goes through all of a step at once, and nothing of the perception is stored.
struct FusedSweep {
  const Grid& grid;
  const Perceiver& perceiver;
  const Layers& layers;
  const LayerGradients& layer_gradients;
  const DenseAdjoint& adjoint;

  void batch(Scratch& s, GradientSums& sum, int slot, int n) const {
    if (n == 0) return;
    const int V = grid.V, Cp = grid.Cp;
    perceiver.perceive_dense(s, n, s.v + Cp, V);
    layer_gradients.batch(s, sum, slot, n);
    for (int i = 0; i < n; ++i) add(s.d_v + int64_t{i} * V, s.targets[i], Cp);
    adjoint.spread_batch(s, sum, s.d_v + Cp, V, n);
  }

  // From the gradient d_from of the new state, all of what goes back to the cells that fire and those that they read,
  // added to d_to or to the halo.
  void sweep(Scratch& s, GradientSums& sum, Halo& halo, int step, const float* source, const float* d_from,
             float* d_to) const {
    int n = 0, gathered_slot = -1;
    grid.for_groups([&](int64_t first, int count, int slot) {
      if (slot != gathered_slot) {
        batch(s, sum, gathered_slot, n), n = 0;
        sum.select_slot(slot);
      }
      gathered_slot = slot;
      draw_fire(grid, first, count, step, s.fire);
      for (int64_t row = first; row < first + count; ++row) {
        const int firing = list_firing(grid, s.fire + (row - first) * grid.W, 1, s.firing, s.firing_padded);
        adjoint.find_rows(s, halo, row, source, d_to);
        for (int q = 0, m; q < firing; q += m) {
          m = std::min(firing - q, layers.batch_cells - n);
          add_row_cells(s, row, q, m, n, source, d_from, d_to);
          n += m;
          if (n == layers.batch_cells) batch(s, sum, slot, n), n = 0;
        }
      }
    });
    batch(s, sum, gathered_slot, n);
    sum.fold_cells(), sum.fold_filters();
  }

  // Cells q to q + m of the row's list become number n and following of the batch.
  void add_row_cells(Scratch& s, int64_t row, int q, int m, int n, const float* source, const float* d_from,
                     float* d_to) const {
    const int V = grid.V, Cp = grid.Cp;
    const int64_t origin = row * grid.W * Cp;
    const float* x = grid.cell(source, row, 0);
    gather(x, s.firing_padded + q, m, Cp, x, s.v + int64_t{n} * V, V, unchanged);
    gather(d_from + origin, s.firing + q, m, Cp, layers.free_channels, s.d_delta + int64_t{n} * Cp, Cp, masked);
    for (int i = 0; i < m; ++i) {
      adjoint.add_cell(s, n + i, s.firing[q + i]);
      s.targets[n + i] = d_to + origin + int64_t{s.firing[q + i]} * Cp;
    }
  }
};
