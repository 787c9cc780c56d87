// The adjoint of a dense convolution in scatter form: a cell sends its gradient back to all cells that it reads, as one
// matrix product for the batch and an addition for every tap. Cells that do not fire cost nothing, which in gather form
// they do.

// One thread's share of rows, and where it adds what belongs to the rows of others: rows of its own, which their owners
// fetch behind a barrier.
struct alignas(64) Halo {
  int64_t begin, end;            // of the rows that are this thread's
  std::vector<int> slots;        // of every row: its place in `foreign`, or -1
  std::vector<int64_t> foreign;  // rows of others that this thread's cells read
  std::vector<float> values;     // [foreign][W][Cp], zero between steps
};

struct DenseAdjoint {
  const Grid& grid;
  const Perceiver& perceiver;
  int d_y_cell;  // floats of d_y per cell
  int panel_taps;
  float* weight;  // for every panel of taps [F*Cp][taps][Cp]
  std::unique_ptr<Halo[]> halos;

  DenseAdjoint(Grid& g, const Perceiver& p) : grid(g), perceiver(p), halos(new Halo[g.args.threads]) {
    d_y_cell = p.y_cell, panel_taps = std::max(1, kPanel / g.Cp);
    weight = g.take<float>(g.dense ? int64_t{g.tap_count} * g.run * d_y_cell : 0);
    if (g.dense) pack();
  }

  int panel_width(int e) const { return std::min(panel_taps, grid.kw - e) * grid.Cp; }
  float* panel_at(int r, int e) const { return weight + int64_t{r * grid.kw + e} * grid.Cp * d_y_cell; }

  void pack() const {
    const int inputs = grid.tap_count * grid.run, columns = d_y_cell;
    for (int r = 0; r < grid.tap_count; ++r)
      for (int e = 0; e < grid.kw; e += panel_taps) {
        const int width = panel_width(e), first = r * grid.run + e * grid.Cp;
        float* panel = panel_at(r, e);
        for (int k = 0; k < columns; ++k) {
          const PanelColumn column = panel_column(perceiver.weight, inputs, columns, k);
          for (int i = 0; i < width; ++i) panel[int64_t{k} * width + i] = column[first + i];
        }
      }
  }

  // body(tap row, the row that it reads, or -1)
  template <class Body>
  void for_read_rows(int64_t row, Body body) const {
    const int64_t sample = row / grid.plane;
    const int d = int(row % grid.plane / grid.H), y = int(row % grid.H);
    for (int i = 0; i < grid.kd; ++i)
      for (int j = 0; j < grid.kh; ++j) {
        const int dd = grid.map_d[d + i - grid.pd], yy = grid.map_h[y + j - grid.ph];
        body(i * grid.kh + j, dd < 0 || yy < 0 ? -1 : (sample * grid.D + dd) * grid.H + yy);
      }
  }

  // This thread's, once per call.
  void make_halo(Halo& halo) const {
    int64_t begin, end;
    Grid::share(grid.chunks, &begin, &end);
    halo.begin = begin < end ? grid.chunk_begin(int(begin)) : 0;
    halo.end = begin < end ? grid.chunk_end(int(end) - 1) : 0;
    halo.slots.assign(grid.rows, -1);
    for (int64_t row = halo.begin; row < halo.end; ++row)
      for_read_rows(row, [&](int, int64_t read) {
        if (read < 0 || (read >= halo.begin && read < halo.end) || halo.slots[read] >= 0) return;
        halo.slots[read] = int(halo.foreign.size());
        halo.foreign.push_back(read);
      });
    halo.values.assign(int64_t(halo.foreign.size()) * grid.W * grid.Cp, 0.0f);
  }

  // What the other threads have for this thread's rows, in their order.
  void fetch_halos(const Halo& own, float* d_source) const {
    const int64_t row_floats = int64_t{grid.W} * grid.Cp;
    for (int t = 0; t < omp_get_num_threads(); ++t) {
      Halo& other = halos[t];
      for (size_t k = 0; k < other.foreign.size(); ++k) {
        if (other.foreign[k] < own.begin || other.foreign[k] >= own.end) continue;
        float* values = other.values.data() + k * row_floats;
        add(values, d_source + other.foreign[k] * row_floats, int(row_floats));
        std::fill(values, values + row_floats, 0.0f);
      }
    }
  }

  // Of a row: where its taps lie, and where their gradients go.
  void find_rows(Scratch& s, Halo& halo, int64_t row, const float* source, float* d_source) const {
    find_tap_rows(grid, source, row, s.tap_rows);
    const int64_t row_floats = int64_t{grid.W} * grid.Cp;
    for_read_rows(row, [&](int r, int64_t read) {
      s.spread_rows[r] = read < 0                                ? nullptr
                         : read >= halo.begin && read < halo.end ? d_source + read * row_floats
                                                                 : halo.values.data() + halo.slots[read] * row_floats;
    });
  }

  // Cell w of the row becomes number i of the batch.
  void add_cell(Scratch& s, int i, int w) const {
    perceiver.add_cell_taps(s, i, w);
    s.columns[i] = w;
    for (int r = 0; r < grid.tap_count; ++r) s.cell_spread[int64_t{r} * kLargeBatch + i] = s.spread_rows[r];
  }

  // From d_y [n][stride] of the batch to the filters' gradients and to those of the cells that were read. Rows of d_y
  // up to the next multiple of kRowGranule are read.
  void spread_batch(Scratch& s, GradientSums& sum, const float* d_y, int64_t stride, int n) const {
    const int run = grid.run;
    for (int r = 0; r < grid.tap_count; ++r) {
      outer_product(PointerRows{s.cell_tap_rows[r], 0}, d_y, stride, n, run, d_y_cell,
                    sum.perceive_w.partial + int64_t{r} * run * d_y_cell, d_y_cell);
      for (int e = 0; e < grid.kw; e += panel_taps) {
        const int width = panel_width(e);
        product<Start::kZero>(StridedRows{d_y, stride}, panel_at(r, e), width, d_y_cell, width, nullptr, s.spread,
                              width, n);
        add_taps(s, s.cell_spread + int64_t{r} * kLargeBatch, e, width, n);
      }
    }
    add_column_sums(d_y, stride, n, d_y_cell, sum.perceive_b.partial);
    sum.count_filters(n);
  }
  // What the taps from e on of n cells get, into the rows that they lie in.
  void add_taps(const Scratch& s, float* const* target_rows, int e, int width, int n) const {
    const int Cp = grid.Cp;
    const int* map = grid.map_w + e - grid.pw;
    for (int i = 0; i < n; ++i) {
      if (target_rows[i] == nullptr) continue;
      const int* reads = map + s.columns[i];
      for (int j = 0; j < width; j += Cp)
        if (const int w = reads[j / Cp]; w >= 0)
          add(s.spread + int64_t{i} * width + j, target_rows[i] + int64_t{w} * Cp, Cp);
    }
  }

  // All cells of a row, by way of s.y_row, as whole tiles are read.
  void spread_row(Scratch& s, GradientSums& sum, Halo& halo, int64_t row, const float* source, float* d_source,
                  const float* d_y_row) const {
    find_rows(s, halo, row, source, d_source);
    for (int w0 = 0; w0 < grid.W; w0 += kLargeBatch) {
      const int n = std::min(kLargeBatch, grid.W - w0);
      for (int i = 0; i < n; ++i) add_cell(s, i, w0 + i);
      copy(d_y_row + int64_t{w0} * d_y_cell, s.y_row, n * d_y_cell);
      spread_batch(s, sum, s.y_row, d_y_cell, n);
    }
  }
};
