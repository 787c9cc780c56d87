// Perception of a row of cells, or of listed cells, through packed filters.

// Column j of a [K][n] matrix stored as Panels.
struct PanelColumn {
  float* first;
  int step;  // floats from one row to the next
  float& operator[](int64_t k) const { return first[k * step]; }
};
static PanelColumn panel_column(float* data, int K, int n, int j) {
  const int start = j / kPanel * kPanel;
  return {data + int64_t{start} * K + (j - start), std::min(kPanel, n - start)};
}

struct Perceiver {
  const Grid& grid;
  float *weight, *bias;  // depthwise [F][taps][kw][Cp], dense panels [taps*kw*Cp][F*Cp]; [F*Cp]
  int y_cell;            // floats of perception per cell
  int chunk_inputs;      // of a dense convolution, see dense_cells

  explicit Perceiver(Grid& g) : grid(g), y_cell(g.F * g.Cp) {
    chunk_inputs = std::max(1, std::min(g.kw, 96 / g.Cp)) * g.Cp;
    bias = g.take_zeros<float>(y_cell);
    for (int f = 0; f < g.F; ++f)
      for (int c = 0; c < g.C; ++c) bias[f * g.Cp + c] = g.args.perceive_bias[f * g.C + c];
    weight = g.take_zeros<float>(int64_t{g.tap_count} * g.run * y_cell / (g.dense ? 1 : g.Cp));
    g.dense ? pack_dense() : pack_depthwise();
  }

  void pack_dense() const {
    const int taps = grid.tap_count * grid.kw, F = grid.F, C = grid.C, Cp = grid.Cp, columns = y_cell;
    const float* from = grid.args.perceive_weight;
    for (int f = 0; f < F; ++f)
      for (int co = 0; co < C; ++co) {
        const PanelColumn column = panel_column(weight, taps * Cp, columns, f * Cp + co);
        for (int ci = 0; ci < C; ++ci)
          for (int t = 0; t < taps; ++t) column[t * Cp + ci] = *from++;
      }
  }
  void pack_depthwise() const {
    const int taps = grid.tap_count * grid.kw, F = grid.F, C = grid.C, Cp = grid.Cp;
    const float* from = grid.args.perceive_weight;
    float* packed = weight;
    for (int f = 0; f < F; ++f)
      for (int c = 0; c < C; ++c)
        for (int t = 0; t < taps; ++t) packed[(int64_t{f} * taps + t) * Cp + c] = *from++;
  }
  const float* filter(int f) const { return weight + int64_t{f} * grid.tap_count * grid.run; }  // depthwise

  void add_cell_taps(Scratch& s, int i, int w) const {
    const int taps = grid.tap_count;
    const int64_t offset = int64_t{w} * grid.Cp;
    for (int r = 0; r < taps; ++r) s.cell_taps[int64_t{r} * kLargeBatch + i] = s.tap_rows[r] + offset;
  }
  // Pads the pointers of n cells to whole tiles, so that products may read past n.
  void pad_cell_taps(Scratch& s, int n) const {
    for (int i = n; i < round_up(n, kRowGranule); ++i)
      for (int r = 0; r < grid.tap_count; ++r)
        s.cell_taps[int64_t{r} * kLargeBatch + i] = s.cell_taps[int64_t{r} * kLargeBatch];
  }

  // Dense filters at n listed cells: y [n][stride].
  void perceive_dense(Scratch& s, int n, float* y, int64_t stride) const {
    const int inputs = grid.tap_count * grid.run;
    pad_cell_taps(s, n);
    dense_cells(s.cell_tap_rows, grid.tap_count, grid.run, chunk_inputs, Panels{weight, inputs, y_cell}, bias, y,
                stride, n);
    for (int f = 0; f < grid.F; ++f) clear_columns(y + f * grid.Cp, stride, grid.C, grid.Cp, n);
  }

  // All filters at all cells of a row, from s.tap_rows: y [W][F*Cp].
  void perceive_row(Scratch& s, float* y) const {
    const int W = grid.W, Cp = grid.Cp;
    if (!grid.dense) {
      for (int f = 0; f < grid.F; ++f)
        depthwise_row(
            {s.tap_rows, grid.tap_count, grid.kw, Cp, filter(f), bias + f * Cp, Cp, false, y + f * Cp, y_cell}, W);
      return;
    }
    for (int w0 = 0; w0 < W; w0 += kLargeBatch) {
      const int n = std::min(kLargeBatch, W - w0);
      for (int i = 0; i < n; ++i) add_cell_taps(s, i, w0 + i);
      perceive_dense(s, n, s.y_row + int64_t{w0} * y_cell, y_cell);
    }
    if (y != s.y_row) std::memcpy(y, s.y_row, sizeof(float) * W * y_cell);
  }

  // v[i] = (x, y) - centre of n cells that follow each other.
  void centred(const float* x, const float* y, const float* centre, int n, float* v) const {
    subtract(x, grid.Cp, centre, n, v, grid.V);
    subtract(y, y_cell, centre + grid.Cp, n, v + grid.Cp, grid.V);
  }
};
