// Gradients of all cells: of the state, of what is perceived from, and of the perception.

struct StateGradients {
  const Grid& grid;
  bool fused;                 // dense filters without a norm: a batch goes through all of a step at once
  int d_y_cell;               // floats of d_y per cell
  int64_t d_y_row_floats;     // rows of W + 4*pad cells, with zero margins of 2*pad
  float* d_y;                 // gradient of the perception; not if fused
  float *d_state, *d_source;  // compact [cells][Cp]: gradient of the state, and of perceive_from if there is one
  float* d_next;              // if fused, the gradient of the state before: neighbours add to what a cell still reads

  StateGradients(Grid& g, const BackwardArgs& args) : grid(g), fused(g.dense && !g.has_norm), d_y_cell(g.F * g.Cp) {
    const bool has_source = args.perceive_from != nullptr;
    const int64_t floats = g.rows * g.W * g.Cp;
    d_y_row_floats = int64_t{g.W + 4 * g.pw} * d_y_cell;
    d_y = g.take<float>(fused ? 0 : g.rows * d_y_row_floats);
    d_state = g.take<float>(floats);
    d_source = has_source ? g.take<float>(floats) : d_state;
    d_next = fused && !has_source ? g.take<float>(floats) : d_source;
  }

  float* d_y_row(int64_t row) const { return d_y + row * d_y_row_floats; }  // with its margins
  float* d_y_at(int64_t row, int w) const { return d_y_row(row) + int64_t{w + 2 * grid.pw} * d_y_cell; }

  void load(const void* d_out) const {
    const int64_t row_floats = int64_t{grid.W} * grid.Cp;
    grid.for_rows([&](int64_t row) {
      load_row(grid, d_out, 0, row, d_state + row * row_floats);
      if (d_source != d_state) std::memset(d_source + row * row_floats, 0, sizeof(float) * row_floats);
    });
  }
  void store(const float* from, void* to) const {
    grid.for_rows([&](int64_t row) { store_row(grid, from + row * grid.W * grid.Cp, to, 0, row); });
  }
};
