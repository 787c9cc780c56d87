// The dense layers of one batch of firing cells, backward: from the gradient of their update to that of their
// perception v = (x, y).

struct LayerGradients {
  const Grid& grid;
  const Layers& layers;
  float *out_wt, *folded_wt;  // [Cp][hp] panels, [slots][hp][V]
  float* centres;             // [groups][V] means of the perception, zero without norm

  LayerGradients(Grid& g, const Layers& l) : grid(g), layers(l) {
    folded_wt = g.take<float>(int64_t{g.slots} * g.hp * g.V);
    centres = g.take_zeros<float>(int64_t{g.groups} * g.V);
    out_wt = g.take_zeros<float>(int64_t{g.Cp} * g.hp);
    for (int o = 0; o < g.hp; ++o) {
      const PanelColumn column = panel_column(out_wt, g.Cp, g.hp, o);
      for (int c = 0; c < g.Cp; ++c) column[c] = l.out_w[o * g.Cp + c];
    }
  }

  // Folded weights and their transpose for one step; with norm, around the mean of the group.
  void fold(const double* stats) const {
    const int V = grid.V, hp = grid.hp;
    if (grid.has_norm) {
      layers.hidden_statistics(stats);
#pragma omp barrier
    }
    layers.fold(grid.has_norm);
    int64_t begin, end;
    Grid::share(hp / kVL, &begin, &end);
    for (int slot = 0; slot < grid.slots; ++slot) {
      float* w = layers.folded_w + int64_t{slot} * V * hp;
      for (int o = int(begin) * kVL; o < end * kVL; ++o) {
        const PanelColumn column = panel_column(w, V, hp, o);
        float* row = folded_wt + (int64_t{slot} * hp + o) * V;
        for (int v = 0; v < V; ++v) row[v] = column[v];
      }
    }
    if (grid.has_norm && omp_get_thread_num() == 0)
      for (int g = 0; g < grid.groups; ++g)
        for (int v = 0; v < grid.V_logical; ++v)
          centres[int64_t{g} * V + grid.padded(v)] = float(stats[g * grid.stats_width() + v]);
  }

  // s.v, s.d_delta of n firing cells -> s.d_v, the gradients of their perceptions, and the sums that the weights'
  // gradients are made of.
  void batch(Scratch& s, GradientSums& sum, int slot, int n) const {
    const int V = grid.V, Cp = grid.Cp, hp = grid.hp;
    const Panels w = layers.folded(slot), wt{out_wt, Cp, hp};
    const StridedRows d_delta{s.d_delta, Cp};
    for (int j = 0; j < hp; j += kPanel) {
      const int width = w.width(j);
      layers.hidden_panel(s, slot, j, n);
      product<Start::kZero>(d_delta, wt.at(j), width, Cp, width, nullptr, s.d_hidden, kPanel, n);
      with_activation(grid.args.activation,
                      [&](auto kind) { activate_rows_bwd<kind>(s.hidden, s.d_hidden, kPanel, n, width); });
      const FixedRows<kPanel> d_hidden{s.d_hidden};
      const float* back = folded_wt + (int64_t{slot} * hp + j) * V;
      if (j == 0)
        product<Start::kZero>(d_hidden, back, V, width, V, nullptr, s.d_v, V, n);
      else
        product<Start::kAccumulate>(d_hidden, back, V, width, V, nullptr, s.d_v, V, n);
      outer_product(StridedRows{s.d_hidden, kPanel}, s.v, V, n, width, V, sum.outer.partial + int64_t{j} * V, V);
      outer_product(StridedRows{s.hidden, kPanel}, s.d_delta, Cp, n, width, Cp, sum.out_w.partial + int64_t{j} * Cp,
                    Cp);
      add_column_sums(s.d_hidden, kPanel, n, width, sum.hidden.partial + j);
    }
    if (layers.out_b != nullptr) add_column_sums(s.d_delta, Cp, n, Cp, sum.out_b.partial);
    sum.count_cells(n);
  }
};
