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

struct alignas(64) GradientSums {      // its counters change with every batch: no line is shared by threads
  Sum out_w, perceive_w, perceive_b;   // over all steps
  Sum outer, hidden;                   // sum of g v^T [hp][V] and of g [hp] of the current slot and step,
  double *outer_slots, *hidden_slots;  // where g is the gradient of the activation's input; [slots] of each
  int64_t cells_pending, filters_pending;

  void fold_cells() {
    for (Sum* s : {&out_w, &outer, &hidden}) s->fold();
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
