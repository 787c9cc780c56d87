// States of all cells: contiguous [cells][C] in the caller's dtype, compact [cells][Cp] and padded float32.

// One row of a compact state from the caller's, which begins `first` values into `from`.
static inline void load_row(const Grid& grid, const void* from, int64_t first, int64_t row, float* to) {
  const int W = grid.W, C = grid.C, Cp = grid.Cp;
  const Storage storage = grid.args.storage;
  if (C == Cp) return load_values(storage, from, first + row * W * C, W * C, to);
  for (int w = 0; w < W; ++w, to += Cp) {
    load_values(storage, from, first + (row * W + w) * C, C, to);
    std::fill(to + C, to + Cp, 0.0f);
  }
}
static inline void store_row(const Grid& grid, const float* from, void* to, int64_t first, int64_t row) {
  const int W = grid.W, C = grid.C, Cp = grid.Cp;
  const Storage storage = grid.args.storage;
  if (C == Cp) return store_values(storage, from, W * C, to, first + row * W * C);
  for (int w = 0; w < W; ++w) store_values(storage, from + w * Cp, C, to, first + (row * W + w) * C);
}

template <class T>
static inline void fill_halo(const Grid& grid, T* state, int64_t row) {
  for (int i = 1; i <= grid.pw; ++i)
    for (int w : {-i, grid.W - 1 + i}) {
      if (grid.map_w[w] < 0)
        std::memset(grid.cell(state, row, w), 0, sizeof(T) * grid.Cp);
      else
        copy(grid.cell(state, row, grid.map_w[w]), grid.cell(state, row, w), grid.Cp);
    }
}

// The caller's state -> this thread's rows of a padded one.
static inline void load_state(const Grid& grid, const void* from, int64_t first, float* state) {
  grid.for_rows([&](int64_t row) {
    load_row(grid, from, first, row, grid.cell(state, row, 0));
    fill_halo(grid, state, row);
  });
}
static inline void store_state(const Grid& grid, const float* state, void* to, int64_t first) {
  grid.for_rows([&](int64_t row) { store_row(grid, grid.cell(state, row, 0), to, first, row); });
}

// Leftmost taps of the row's first cell, for every (D, H) offset of the filter.
template <class T>
static inline void find_tap_rows(const Grid& grid, const T* state, int64_t row, const T** taps) {
  const int pd = grid.pd, ph = grid.ph, H = grid.H;
  const int64_t plane = grid.plane, row_floats = grid.row_floats, sample_row = row / plane * plane;
  const int *map_d = grid.map_d + row % plane / H, *map_h = grid.map_h + row % H;
  const T* zeros = (const T*)grid.zero_row;
  for (int i = -pd; i <= pd; ++i)
    for (int j = -ph; j <= ph; ++j) {
      const int d = map_d[i], y = map_h[j];
      *taps++ = d < 0 || y < 0 ? zeros : state + (sample_row + int64_t{d} * H + y) * row_floats;
    }
}
