// What a thread works on between two rows of a state.

struct Scratch {
  float *v, *hidden, *delta;        // [batch][V], [batch][kPanel], [batch][Cp]
  float *d_delta, *d_hidden, *d_v;  // the same for the backward pass
  float *y_row, *pad_row;           // [W][F*Cp], [W + 2*pad][Cp]
  const float** tap_rows;           // [taps of D and H]
  const float** cell_taps;          // [taps of D and H][kLargeBatch]
  const float*** cell_tap_rows;     // [taps of D and H] -> cell_taps
  float** targets;                  // [kLargeBatch]
  float* spread;                    // [batch][whole taps], see DenseAdjoint
  float** spread_rows;              // [taps of D and H]
  float** cell_spread;              // [taps of D and H][kLargeBatch]
  int* columns;                     // [kLargeBatch]
  uint8_t* fire;                    // [rows of a group][W]
  int *firing, *firing_padded;      // [rows of a group][W] and kFetchAhead more, see list_firing
  float *moments, *sums;            // [V][V], [V]
  float* pivot;                     // [V]
};

static Scratch make_scratch(Grid& grid) {
  const int batch = round_up(std::max(kLargeBatch, kMomentBatch), kRowGranule), taps = grid.tap_count;
  const int V = grid.V, Cp = grid.Cp, W = grid.W;
  const int64_t group_cells = int64_t{grid.rows_per_group()} * W;
  Scratch s;
  s.v = grid.take_zeros<float>(int64_t{batch} * V);
  s.hidden = grid.take_zeros<float>(batch * kPanel);
  s.delta = grid.take_zeros<float>(int64_t{batch} * Cp);
  s.d_delta = grid.take_zeros<float>(int64_t{batch} * Cp);
  s.d_hidden = grid.take_zeros<float>(batch * kPanel);
  s.d_v = grid.take_zeros<float>(int64_t{batch} * V);
  s.y_row = grid.take_zeros<float>(int64_t{round_up(W, kLargeBatch)} * grid.F * Cp);
  s.pad_row = grid.take_zeros<float>(int64_t{round_up(W + 2 * grid.pw, kLargeBatch)} * Cp);
  s.tap_rows = grid.take<const float*>(taps);
  s.cell_taps = grid.take<const float*>(int64_t{taps} * kLargeBatch);
  s.cell_tap_rows = grid.take<const float**>(taps);
  for (int r = 0; r < taps; ++r) s.cell_tap_rows[r] = s.cell_taps + int64_t{r} * kLargeBatch;
  s.targets = grid.take<float*>(kLargeBatch);
  s.spread = grid.take_zeros<float>(int64_t{batch} * std::max(kPanel, Cp));
  s.spread_rows = grid.take<float*>(taps);
  s.cell_spread = grid.take<float*>(int64_t{taps} * kLargeBatch);
  s.columns = grid.take<int>(kLargeBatch);
  s.fire = grid.take<uint8_t>(group_cells);
  s.firing = grid.take<int>(group_cells + kFetchAhead);
  s.firing_padded = grid.take<int>(group_cells + kFetchAhead);
  s.moments = grid.take<float>(grid.has_norm ? int64_t{V} * V : 0);
  s.sums = grid.take<float>(V);
  s.pivot = grid.take<float>(V);
  return s;
}

// One per thread.
static Scratch* make_scratches(Grid& grid) {
  Scratch* scratch = grid.take<Scratch>(grid.args.threads);
  for (int t = 0; t < grid.args.threads; ++t) scratch[t] = make_scratch(grid);
  return scratch;
}
