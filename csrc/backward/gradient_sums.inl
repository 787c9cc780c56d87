// Sums over cells that the gradients of the parameters are made of.

// float32 sums of one thread, moved into float64 ones before rounding can pile up.
struct Sum {
  float* partial;
  double* total;
  int64_t n;
  void fold() {
    for (int64_t i = 0; i < n; ++i) total[i] += partial[i], partial[i] = 0.0f;
  }
};

constexpr int kGradientFoldCells = 2048;

struct alignas(64) GradientSums {  // its counters change with every batch: no line is shared by threads
  Sum out_w, out_b;                // over all steps; out_b is empty without a bias
  Sum perceive_w, perceive_b;
  Sum outer, hidden;                   // sum of g v^T [hp][V] and of g [hp] of the current slot and step,
  double *outer_slots, *hidden_slots;  // where g is the gradient of the activation's input; [slots] of each
  int64_t cells_pending, filters_pending;

  // What follows belongs to this slot of weights.
  void select_slot(int slot) {
    fold_cells();
    outer.total = outer_slots + slot * outer.n;
    hidden.total = hidden_slots + slot * hidden.n;
  }
  // After n more cells.
  void count_cells(int64_t n) {
    cells_pending += n;
    if (cells_pending >= kGradientFoldCells) fold_cells();
  }
  void fold_cells() {
    for (Sum* s : {&out_w, &out_b, &outer, &hidden}) s->fold();
    cells_pending = 0;
  }
  // After n more cells, or a row of them.
  void count_filters(int64_t n) {
    filters_pending += n;
    if (filters_pending >= kGradientFoldCells) fold_filters();
  }
  void fold_filters() {
    for (Sum* s : {&perceive_w, &perceive_b}) s->fold();
    filters_pending = 0;
  }
};

// One per thread.
static GradientSums* make_sums(Grid& grid) {
  GradientSums* sums = grid.take<GradientSums>(grid.args.threads);
  const int64_t outer = int64_t{grid.hp} * grid.V, y_cell = grid.F * grid.Cp;
  const int64_t filter_weights = int64_t{grid.tap_count} * grid.kw * y_cell * (grid.dense ? grid.Cp : 1);
  auto sum = [&](int64_t n) { return Sum{grid.take_zeros<float>(n), grid.take_zeros<double>(n), n}; };
  for (int t = 0; t < grid.args.threads; ++t) {
    GradientSums& s = sums[t];
    s.out_w = sum(int64_t{grid.hp} * grid.Cp), s.out_b = sum(grid.args.out_bias != nullptr ? grid.Cp : 0);
    s.perceive_w = sum(filter_weights), s.perceive_b = sum(y_cell);
    s.outer_slots = grid.take_zeros<double>(grid.slots * outer);
    s.hidden_slots = grid.take_zeros<double>(int64_t{grid.slots} * grid.hp);
    s.outer = {grid.take_zeros<float>(outer), s.outer_slots, outer};
    s.hidden = {grid.take_zeros<float>(grid.hp), s.hidden_slots, grid.hp};
    s.cells_pending = s.filters_pending = 0;
  }
  return sums;
}
