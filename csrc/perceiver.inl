// Perception of rows and of single cells, and the scratch memory of the threads that compute it.

// One thread's scratch.
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

// Loops over cells take their sizes by value: a store might change a member, for all that the compiler knows.

// to[i] = change(the i-th listed cell, operand). Cells that are wanted soon are fetched: the hardware does not see
// through the gaps.
template <class Change>
static void gather(const float* from, const int* listed, int n, int channels, const float* operand, float* to,
                   int64_t to_cell, Change change) {
  for (int c = 0; c < channels; c += kVL) {
    const vf with = load(operand + c);
    for (int i = 0; i < n; ++i) {
      __builtin_prefetch(from + int64_t{listed[i + kFetchAhead]} * channels + c);
      store(to + i * to_cell + c, change(load(from + int64_t{listed[i]} * channels + c), with));
    }
  }
}
static vf unchanged(vf v, vf) { return v; }
static vf difference(vf v, vf centre) { return v - centre; }
// to[i] = from[i] - centre
static void subtract(const float* from, int channels, const float* centre, int n, float* to, int64_t to_cell) {
  for (int c = 0; c < channels; c += kVL) {
    const vf m = load(centre + c);
    for (int i = 0; i < n; ++i) store(to + i * to_cell + c, load(from + int64_t{i} * channels + c) - m);
  }
}
// targets[i] += delta[i] where the mask has ones
static void add_masked(const float* delta, int channels, const float* mask, int n, float* const* targets) {
  for (int c = 0; c < channels; c += kVL) {
    const vf free = load(mask + c);
    for (int i = 0; i < n; ++i) {
      float* target = targets[i] + c;
      store(target, load(target) + masked(load(delta + int64_t{i} * channels + c), free));
    }
  }
}

// Columns that pad to whole vectors: an infinity times their zero weights is not zero.
static void clear_columns(float* rows, int64_t stride, int from, int to, int n) {
  for (int i = 0; from < to && i < n; ++i) std::fill(rows + i * stride + from, rows + i * stride + to, 0.0f);
}

struct Perceiver : Grid {
  // Packed filters: depthwise [F][taps][kw][Cp], dense panels [taps*kw*Cp][F*Cp].
  float *perceive_w, *perceive_b;
  int chunk_inputs;  // of a dense convolution, see dense_cells
  Scratch* scratch;

  Perceiver(const RolloutArgs& a, Workspace& w) : Grid(a, w) {
    chunk_inputs = std::max(1, std::min(kw, 96 / Cp)) * Cp;
    pack_filters();
    make_scratch();
  }

  void pack_filters() {
    const int taps = tap_count * kw, columns = F * Cp;
    perceive_b = take_zeros<float>(columns);
    for (int f = 0; f < F; ++f)
      for (int c = 0; c < C; ++c) perceive_b[f * Cp + c] = args.perceive_bias[f * C + c];
    if (dense) {
      perceive_w = take_zeros<float>(int64_t{taps} * Cp * columns);
      for (int f = 0; f < F; ++f)
        for (int co = 0; co < C; ++co)
          for (int ci = 0; ci < C; ++ci)
            for (int t = 0; t < taps; ++t)
              *panel_entry(perceive_w, taps * Cp, columns, t * Cp + ci, f * Cp + co) =
                  args.perceive_weight[((int64_t{f} * C + co) * C + ci) * taps + t];
    } else {
      perceive_w = take_zeros<float>(int64_t{F} * taps * Cp);
      for (int f = 0; f < F; ++f)
        for (int c = 0; c < C; ++c)
          for (int t = 0; t < taps; ++t)
            perceive_w[(int64_t{f} * taps + t) * Cp + c] = args.perceive_weight[(int64_t{f} * C + c) * taps + t];
    }
  }

  // Entry (k, j) of a [K][n] matrix stored as Panels.
  static float* panel_entry(float* data, int K, int n, int k, int j) {
    const int start = j / kPanel * kPanel, width = std::min(kPanel, n - start);
    return data + int64_t{start} * K + int64_t{k} * width + (j - start);
  }

  void make_scratch() {
    scratch = take<Scratch>(args.threads);
    const int group_rows = rows_per_group();
    for (int t = 0; t < args.threads; ++t) {
      Scratch& s = scratch[t];
      const int batch = round_up(std::max(kLargeBatch, kMomentBatch), kRowGranule);
      s.v = take_zeros<float>(int64_t{batch} * V);
      s.hidden = take_zeros<float>(batch * kPanel);
      s.delta = take_zeros<float>(int64_t{batch} * Cp);
      s.d_delta = take_zeros<float>(int64_t{batch} * Cp);
      s.d_hidden = take_zeros<float>(batch * kPanel);
      s.d_v = take_zeros<float>(int64_t{batch} * V);
      s.y_row = take_zeros<float>(int64_t{round_up(W, kLargeBatch)} * F * Cp);
      s.pad_row = take_zeros<float>(int64_t{round_up(W + 2 * pw, kLargeBatch)} * Cp);
      s.tap_rows = take<const float*>(tap_count);
      s.cell_taps = take<const float*>(int64_t{tap_count} * kLargeBatch);
      s.cell_tap_rows = take<const float**>(tap_count);
      for (int r = 0; r < tap_count; ++r) s.cell_tap_rows[r] = s.cell_taps + int64_t{r} * kLargeBatch;
      s.targets = take<float*>(kLargeBatch);
      s.spread = take_zeros<float>(int64_t{batch} * std::max(kPanel, Cp));
      s.spread_rows = take<float*>(tap_count);
      s.cell_spread = take<float*>(int64_t{tap_count} * kLargeBatch);
      s.columns = take<int>(kLargeBatch);
      s.fire = take<uint8_t>(int64_t{group_rows} * W);
      s.firing = take<int>(int64_t{group_rows} * W + kFetchAhead);
      s.firing_padded = take<int>(int64_t{group_rows} * W + kFetchAhead);
      s.moments = take<float>(has_norm ? int64_t{V} * V : 0);
      s.sums = take<float>(V);
      s.pivot = take<float>(V);
    }
  }

  // ---- perception --------------------------------------------------------------------------------------

  void add_cell_taps(Scratch& s, int i, int w) const {
    for (int r = 0; r < tap_count; ++r) s.cell_taps[int64_t{r} * kLargeBatch + i] = s.tap_rows[r] + int64_t{w} * Cp;
  }
  // Pads the pointers of n cells to whole tiles, so that products may read past n.
  void pad_cell_taps(Scratch& s, int n) const {
    for (int i = n; i < round_up(n, kRowGranule); ++i)
      for (int r = 0; r < tap_count; ++r)
        s.cell_taps[int64_t{r} * kLargeBatch + i] = s.cell_taps[int64_t{r} * kLargeBatch];
  }
  void perceive_dense(Scratch& s, int n, float* y, int64_t y_cell) const {
    pad_cell_taps(s, n);
    dense_cells(s.cell_tap_rows, tap_count, run, chunk_inputs, Panels{perceive_w, tap_count * run, F * Cp}, perceive_b,
                y, y_cell, n);
    for (int f = 0; f < F; ++f) clear_columns(y + f * Cp, y_cell, C, Cp, n);
  }

  // All filters at all cells of a row, from s.tap_rows: y [W][F*Cp].
  void perceive_row(Scratch& s, float* y) const {
    if (!dense) {
      for (int f = 0; f < F; ++f)
        depthwise_row({s.tap_rows, tap_count, kw, Cp, perceive_w + int64_t{f} * tap_count * run, perceive_b + f * Cp,
                       Cp, false, y + f * Cp, int64_t{F} * Cp},
                      W);
      return;
    }
    for (int w0 = 0; w0 < W; w0 += kLargeBatch) {
      const int n = std::min(kLargeBatch, W - w0);
      for (int i = 0; i < n; ++i) add_cell_taps(s, i, w0 + i);
      perceive_dense(s, n, s.y_row + int64_t{w0} * F * Cp, F * Cp);
    }
    if (y != s.y_row) std::memcpy(y, s.y_row, sizeof(float) * W * F * Cp);
  }

  // v[i] = (x, y) - centre of n cells that follow each other.
  void centred(const float* x, const float* y, const float* centre, int n, float* v) const {
    subtract(x, Cp, centre, n, v, V);
    subtract(y, F * Cp, centre + Cp, n, v + Cp, V);
  }
};
