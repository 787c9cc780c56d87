// The norm's statistics: mean and covariance of the perception, over all cells of a sample or of the batch.

// Second moments of one chunk on their way: a batch of cells, float32 sums, float64 totals.
struct ChunkMoments {
  Scratch& s;
  const int V;
  double* total;  // [V + V*V] around the pivot
  int n = 0;      // cells in s.v
  int64_t pending = 0;

  ChunkMoments(Scratch& scratch, int v, double* totals) : s(scratch), V(v), total(totals) {
    std::fill(total, total + V + V * V, 0.0);
    std::fill(s.moments, s.moments + int64_t{V} * V, 0.0f);
    std::fill(s.sums, s.sums + V, 0.0f);
  }
  void add_batch() {
    outer_product<true>(StridedRows{s.v, V}, s.v, V, n, V, V, s.moments, V);
    add_column_sums(s.v, V, n, V, s.sums);
    pending += n, n = 0;
  }
  void fold() {
    for (int i = 0; i < V; ++i) total[i] += s.sums[i], s.sums[i] = 0.0f;
    for (int64_t i = 0; i < int64_t{V} * V; ++i) total[V + i] += s.moments[i], s.moments[i] = 0.0f;
    pending = 0;
  }
};

struct Statistics {
  const Grid& grid;
  const Perceiver& perceiver;
  int64_t width;          // of a chunk's moments: V + V*V
  double* chunk_moments;  // [chunks][width] around the pivot
  double* of_step;        // [groups][V_logical + V_logical^2] of the current step
  Box counted;            // the cells of a sample that they are taken over: all of them in a rollout

  Statistics(Grid& g, const Perceiver& p) : grid(g), perceiver(p), width(g.V + int64_t{g.V} * g.V) {
    counted = {{0, 0, 0}, {g.D, g.H, g.W}};
    chunk_moments = g.take<double>(g.has_norm ? g.chunks * width : 0);
    of_step = g.take<double>(g.has_norm ? g.groups * g.stats_width() : 0);
  }

  bool is_counted(int64_t row) const {
    const int d = int(row % grid.plane / grid.H), y = int(row % grid.H);
    return counted.begin[0] <= d && d < counted.end[0] && counted.begin[1] <= y && y < counted.end[1];
  }
  double counted_cells() const {
    double n = grid.groups > 1 ? 1 : grid.B;
    for (int i = 0; i < 3; ++i) n *= counted.end[i] - counted.begin[i];
    return n;
  }

  // A constant near the mean of the perception, the same for all threads: it keeps the second moments from
  // cancelling. The mean over one row in the middle of the group.
  void find_pivot(Scratch& s, const float* source, int group) const {
    const int d = (counted.begin[0] + counted.end[0]) / 2, y = (counted.begin[1] + counted.end[1]) / 2;
    const int64_t row = group * grid.plane + int64_t{d} * grid.H + y;
    const int w = counted.begin[2], n = counted.end[2] - w, Cp = grid.Cp, y_cell = perceiver.y_cell;
    find_tap_rows(grid, source, row, s.tap_rows);
    perceiver.perceive_row(s, s.y_row);
    std::fill(s.pivot, s.pivot + grid.V, 0.0f);
    add_column_sums(grid.cell(source, row, w), Cp, n, Cp, s.pivot);
    add_column_sums(s.y_row + int64_t{w} * y_cell, y_cell, n, y_cell, s.pivot + Cp);
    for (int v = 0; v < grid.V; ++v) s.pivot[v] /= float(n);
  }

  // Perception of all cells into y [rows][W][F*Cp].
  void perceive_all(Scratch& s, const float* source, float* y) const {
    grid.for_rows([&](int64_t row) {
      find_tap_rows(grid, source, row, s.tap_rows);
      perceiver.perceive_row(s, y + row * grid.W * perceiver.y_cell);
    });
  }

  // The same, and the moments of the counted cells per chunk. Without y only the moments are wanted.
  void take_moments(Scratch& s, const float* source, float* y) const {
    int group = -1;
    grid.for_chunks([&](int c) {
      if (group != (grid.groups > 1 ? grid.sample_of_chunk(c) : 0)) {
        group = grid.groups > 1 ? grid.sample_of_chunk(c) : 0;
        find_pivot(s, source, group);
      }
      ChunkMoments moments(s, grid.V, chunk_moments + c * width);
      for (int64_t row = grid.chunk_begin(c); row < grid.chunk_end(c); ++row) {
        const bool counts = is_counted(row);
        if (y == nullptr && !counts) continue;
        float* y_row = y != nullptr ? y + row * grid.W * perceiver.y_cell : s.y_row;
        find_tap_rows(grid, source, row, s.tap_rows);
        perceiver.perceive_row(s, y_row);
        if (counts) add_row(moments, grid.cell(source, row, 0), y_row);
      }
      moments.add_batch(), moments.fold();
    });
  }
  void add_row(ChunkMoments& moments, const float* x, const float* y) const {
    Scratch& s = moments.s;
    for (int w = counted.begin[2], m; w < counted.end[2]; w += m) {
      m = std::min(counted.end[2] - w, kMomentBatch - moments.n);
      perceiver.centred(x + int64_t{w} * grid.Cp, y + int64_t{w} * perceiver.y_cell, s.pivot, m,
                        s.v + int64_t{moments.n} * grid.V);
      moments.n += m;
      if (moments.n == kMomentBatch) moments.add_batch();
    }
    if (moments.pending >= kFoldCells) moments.fold();
  }

  // Chunk moments -> mean and covariance of each group, [V_logical + V_logical^2], shared among the threads by rows.
  // The order of summation is that of the chunks. Barriers before and after are the caller's.
  void reduce(Scratch& s, const float* source, double* stats) const {
    const int per_group = grid.chunks / grid.groups, V = grid.V;
    const double inverse = 1.0 / counted_cells();
    std::vector<double> shift(V), sums(V);
    for (int g = 0; g < grid.groups; ++g) {
      const double* moments = chunk_moments + int64_t{g} * per_group * width;
      find_pivot(s, source, g);
      std::fill(shift.begin(), shift.end(), 0.0);
      for (int c = 0; c < per_group; ++c)
        for (int i = 0; i < V; ++i) shift[i] += moments[c * width + i];
      for (double& value : shift) value *= inverse;
      for (int i = omp_get_thread_num(); i < grid.V_logical; i += omp_get_num_threads())
        reduce_row(s, moments, i, inverse, shift, sums, stats + g * grid.stats_width());
    }
  }
  void reduce_row(const Scratch& s, const double* moments, int i, double inverse, const std::vector<double>& shift,
                  std::vector<double>& sums, double* mean) const {
    const int per_group = grid.chunks / grid.groups, V = grid.V, n = grid.V_logical, ip = grid.padded(i);
    double* covariance = mean + n;
    mean[i] = s.pivot[ip] + shift[ip];
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int c = 0; c < per_group; ++c) {
      const double* row = moments + c * width + V + int64_t{ip} * V;
      for (int j = ip / kVL * kVL; j < V; ++j) sums[j] += row[j];
    }
    for (int j = i; j < n; ++j)
      covariance[i * n + j] = covariance[j * n + i] =
          sums[grid.padded(j)] * inverse - shift[ip] * shift[grid.padded(j)];
  }
};
