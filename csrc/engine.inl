// What forward and backward share: sizes rounded up to whole vectors, packed weights, padded states, fire bits,
// norm statistics and the weights they fold into.

static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Index that padding reads for i in [-p, n + p); -1 is a zero.
static inline int padded_index(int i, int n, Padding padding) {
  if (i >= 0 && i < n) return i;
  switch (padding) {
    case Padding::kReflect: return i < 0 ? -i : 2 * n - 2 - i;
    case Padding::kReplicate: return i < 0 ? 0 : n - 1;
    case Padding::kCircular: return ((i % n) + n) % n;
    default: return -1;
  }
}

constexpr int kSmallBatch = 24, kLargeBatch = 96;  // firing cells per product; small while all weights fit in L1
constexpr int kMomentBatch = 48;                   // cells per update of the second moments
constexpr int kFoldCells = 1024;                   // float32 sums run over at most about so many cells
constexpr int kGroupCells = 1024;                  // cells whose fire bits are drawn at once

// One thread's scratch.
struct Scratch {
  float *v, *hidden, *delta;                // [batch][V], [batch][kPanel], [batch][Cp]
  float *d_delta, *d_hidden, *d_v;          // the same for the backward pass
  float *y_row, *pad_row;                   // [W][F*Cp], [W + 2*pad][Cp]
  const float** tap_rows;                   // [taps of D and H]
  const float** cell_taps;                  // [taps of D and H][kLargeBatch]
  const float*** cell_tap_rows;             // [taps of D and H] -> cell_taps
  float** targets;                          // [kLargeBatch]
  uint8_t* fire;                            // [rows of a group][W]
  int* firing;                              // [W]
  float *moments, *sums;                    // [V][V], [V]
  float* pivot;                             // [V]
};

struct Engine {
  const RolloutArgs& args;
  Workspace& workspace;

  int B, D, H, W, C, Cp, F, V, h, hp;  // Cp, hp: rounded up to whole vectors; V = (1+F)*Cp
  int kd, kh, kw, pd, ph, pw, tap_count;
  int64_t rows, plane, cells;          // of the batch; plane = D*H rows of one sample; cells of one sample
  int64_t row_floats, state_floats;    // of a padded row and state
  bool dense, has_norm, leaky, whole_fires;
  int groups, slots;                   // samples that share norm statistics; weights that differ by sample
  int chunks_per_sample, chunks;       // fixed pieces of work, so that sums do not depend on the thread count
  int batch_cells, run, chunk_inputs;
  int V_logical;

  int *map_d, *map_h, *map_w;
  float* zero_row;
  // Packed weights. Depthwise [F][taps][kw][Cp], dense panels [taps*kw*Cp][F*Cp].
  float *perceive_w, *perceive_b;
  float *hidden_w, *hidden_b;  // [V][hp], [hp] before folding
  float* out_w;                // [hp][Cp], frozen columns zero
  float *folded_w, *folded_b;  // [slots] panels of [V][hp], [hp]
  double* chunk_moments;       // [chunks][V + V*V] around the pivot
  double* step_stats;          // [groups][V_logical + V_logical^2] of the current step
  double* rstd;                // [groups][hp]
  double* mean_h;              // [groups][hp] hidden_weight . mean, without bias
  Scratch* scratch;

  Engine(const RolloutArgs& a, Workspace& w) : args(a), workspace(w) {
    B = a.batch, D = a.size[0], H = a.size[1], W = a.size[2];
    C = a.channels, F = a.filters, h = a.hidden;
    Cp = round_up(C, kVL), hp = round_up(h, kVL), V = (1 + F) * Cp, V_logical = (1 + F) * C;
    kd = a.kernel[0], kh = a.kernel[1], kw = a.kernel[2];
    pd = kd / 2, ph = kh / 2, pw = kw / 2, tap_count = kd * kh;
    plane = int64_t{D} * H, rows = B * plane, cells = plane * W;
    row_floats = int64_t{W + 2 * pw} * Cp, state_floats = rows * row_floats;
    dense = a.perception == Perception::kDense, has_norm = a.norm != Norm::kNone;
    leaky = a.activation == Activation::kLeakyRelu, whole_fires = a.fire_threshold >= (uint64_t{1} << 32);
    groups = a.norm == Norm::kInstance ? B : 1;
    slots = groups > 1 || a.scale != nullptr ? B : 1;
    const int64_t moment_bytes = int64_t{8} * (V + V * V);
    const int wanted = int(std::max<int64_t>(16, std::min<int64_t>(128, (int64_t{8} << 20) / moment_bytes)));
    chunks_per_sample = int(std::min<int64_t>(plane, std::max(1, wanted / B)));
    chunks = B * chunks_per_sample;
    batch_cells = V * hp <= 8192 ? kSmallBatch : kLargeBatch;
    run = kw * Cp, chunk_inputs = std::max(1, std::min(kw, 96 / Cp)) * Cp;
    make_maps();
    pack_weights();
    if (has_norm) {
      chunk_moments = take<double>(int64_t{chunks} * (V + V * V));
      step_stats = take<double>(groups * stats_width());
      rstd = take<double>(groups * hp);
      mean_h = take<double>(groups * hp);
    }
    make_scratch();
  }

  template <class T>
  T* take(int64_t n) {
    return workspace.take<T>(n);
  }
  template <class T>
  T* take_zeros(int64_t n) {
    T* block = take<T>(n);
    std::fill(block, block + n, T(0));
    return block;
  }
  int64_t stats_width() const { return V_logical + int64_t{V_logical} * V_logical; }
  int padded(int v) const { return v / C * Cp + v % C; }  // logical perception index -> packed

  void make_maps() {
    auto map = [&](int n, int p) {
      int* m = take<int>(n + 2 * p);
      for (int i = -p; i < n + p; ++i) m[i + p] = padded_index(i, n, args.padding);
      return m + p;
    };
    map_d = map(D, pd), map_h = map(H, ph), map_w = map(W, pw);
    zero_row = take_zeros<float>(std::max(row_floats, int64_t{W + 4 * pw} * F * Cp));
  }

  void pack_weights() {
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
    hidden_w = take_zeros<float>(int64_t{V} * hp);
    hidden_b = take_zeros<float>(hp);
    out_w = take_zeros<float>(int64_t{hp} * Cp);
    for (int o = 0; o < h; ++o) {
      hidden_b[o] = args.hidden_bias[o];
      for (int v = 0; v < V_logical; ++v) hidden_w[int64_t{padded(v)} * hp + o] = args.hidden_weight[o * V_logical + v];
      for (int c = args.frozen_channels; c < C; ++c) out_w[o * Cp + c] = args.out_weight[c * h + o];
    }
    folded_w = take<float>(int64_t{slots} * V * hp);
    folded_b = take<float>(int64_t{slots} * hp);
  }

  // Entry (k, j) of a [K][n] matrix stored as Panels.
  static float* panel_entry(float* data, int K, int n, int k, int j) {
    const int start = j / kPanel * kPanel, width = std::min(kPanel, n - start);
    return data + int64_t{start} * K + int64_t{k} * width + (j - start);
  }
  Panels folded(int slot) const { return {folded_w + int64_t{slot} * V * hp, V, hp}; }

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
      s.fire = take<uint8_t>(int64_t{group_rows} * W);
      s.firing = take<int>(W);
      s.moments = take<float>(has_norm ? int64_t{V} * V : 0);
      s.sums = take<float>(V);
      s.pivot = take<float>(V);
    }
  }

  // ---- work --------------------------------------------------------------------------------------------

  int rows_per_group() const { return std::max(1, kGroupCells / W); }
  int sample_of_chunk(int chunk) const { return chunk / chunks_per_sample; }
  int64_t chunk_begin(int chunk) const {
    const int sample = chunk / chunks_per_sample, i = chunk % chunks_per_sample;
    return sample * plane + plane * i / chunks_per_sample;
  }
  int64_t chunk_end(int chunk) const {
    const int sample = chunk / chunks_per_sample, i = chunk % chunks_per_sample;
    return sample * plane + plane * (i + 1) / chunks_per_sample;
  }
  // This thread's share of n pieces.
  static void share(int64_t n, int64_t* begin, int64_t* end) {
    const int64_t t = omp_get_thread_num(), count = omp_get_num_threads();
    *begin = n * t / count, *end = n * (t + 1) / count;
  }
  template <class Body>  // body(chunk)
  void for_chunks(Body body) const {
    int64_t begin, end;
    share(chunks, &begin, &end);
    for (int64_t c = begin; c < end; ++c) body(int(c));
  }
  template <class Body>  // body(row) over this thread's rows
  void for_rows(Body body) const {
    for_chunks([&](int c) {
      for (int64_t r = chunk_begin(c); r < chunk_end(c); ++r) body(r);
    });
  }
  template <class Body>  // body(first row, number of rows, slot of weights): pieces small enough for Scratch::fire
  void for_groups(Body body) const {
    for_chunks([&](int c) {
      const int step = rows_per_group();
      for (int64_t r = chunk_begin(c); r < chunk_end(c); r += step)
        body(r, int(std::min<int64_t>(step, chunk_end(c) - r)), slots > 1 ? sample_of_chunk(c) : 0);
    });
  }

  // ---- padded states -----------------------------------------------------------------------------------

  float* cell(float* state, int64_t row, int w) const { return state + row * row_floats + int64_t{w + pw} * Cp; }
  const float* cell(const float* state, int64_t row, int w) const { return cell(const_cast<float*>(state), row, w); }

  void fill_halo(float* state, int64_t row) const {
    for (int i = 1; i <= pw; ++i)
      for (int w : {-i, W - 1 + i}) {
        if (map_w[w] < 0)
          std::memset(cell(state, row, w), 0, sizeof(float) * Cp);
        else
          copy(cell(state, row, map_w[w]), cell(state, row, w), Cp);
      }
  }

  // Contiguous [cells][C] in the storage dtype -> this thread's rows of a padded float32 state.
  void load_state(const void* from, int64_t offset, float* state) const {
    for_rows([&](int64_t row) {
      if (C == Cp) {
        load_values(args.storage, from, offset + row * W * C, W * C, cell(state, row, 0));
      } else {
        for (int w = 0; w < W; ++w) {
          load_values(args.storage, from, offset + (row * W + w) * C, C, cell(state, row, w));
          std::fill(cell(state, row, w) + C, cell(state, row, w) + Cp, 0.0f);
        }
      }
      fill_halo(state, row);
    });
  }
  void store_state(const float* state, void* to, int64_t offset) const {
    for_rows([&](int64_t row) {
      if (C == Cp)
        store_values(args.storage, cell(state, row, 0), W * C, to, offset + row * W * C);
      else
        for (int w = 0; w < W; ++w) store_values(args.storage, cell(state, row, w), C, to, offset + (row * W + w) * C);
    });
  }

  // Leftmost taps of the row's first cell, for every (D, H) offset of the filter.
  void find_tap_rows(const float* state, int64_t row, const float** taps) const {
    const int64_t sample = row / plane;
    const int d = int(row % plane / H), y = int(row % H);
    for (int i = -pd; i <= pd; ++i)
      for (int j = -ph; j <= ph; ++j) {
        const int dd = map_d[d + i], yy = map_h[y + j];
        *taps++ = dd < 0 || yy < 0 ? zero_row : state + ((sample * D + dd) * H + yy) * row_floats;
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

  void gather(const float* x, const float* y, float* v) const {
    copy(x, v, Cp);
    copy(y, v + Cp, F * Cp);
  }

  // ---- fire bits ---------------------------------------------------------------------------------------

  // fire[i][w] = 1 where cell w of row first + i updates in `step`. Counters of all rows run through one loop, since
  // short rows would leave vectors half empty.
  void draw_fire(int64_t first, int count, int step, uint8_t* fire) const {
    if (whole_fires) {
      std::memset(fire, 1, size_t(count) * W);
      return;
    }
    const int64_t x_begin = args.origin[2] >> 2, blocks = ((args.origin[2] + W - 1) >> 2) - x_begin + 1;
    const uint32_t k0 = uint32_t(args.seed), k1 = uint32_t(args.seed >> 32), t = args.first_step + uint32_t(step);
    const uint32_t sample = args.first_sample + uint32_t(first / plane);
    constexpr int kLanes = 64;
    uint32_t x[kLanes], row[kLanes], words[4][kLanes];
    const int64_t total = count * blocks;
    for (int64_t base = 0; base < total; base += kLanes) {
      const int n = int(std::min<int64_t>(kLanes, total - base));
      for (int i = 0; i < n; ++i) {
        const int64_t r = first + (base + i) / blocks;
        x[i] = uint32_t(x_begin + (base + i) % blocks);
        row[i] = uint32_t((args.origin[0] + r % plane / H) * args.extent[1] + args.origin[1] + r % H);
      }
      for (int i = n; i < kLanes; ++i) x[i] = row[i] = 0;
#pragma GCC ivdep
      for (int i = 0; i < kLanes; ++i) {
        uint32_t out[4];
        philox4x32(x[i], row[i], sample, t, k0, k1, out);
        words[0][i] = out[0], words[1][i] = out[1], words[2][i] = out[2], words[3][i] = out[3];
      }
      for (int i = 0; i < n; ++i) {
        const int64_t r = (base + i) / blocks, w0 = (x_begin + (base + i) % blocks) * 4 - args.origin[2];
        for (int q = 0; q < 4; ++q)
          if (w0 + q >= 0 && w0 + q < W) fire[r * W + w0 + q] = words[q][i] < args.fire_threshold;
      }
    }
  }
  int list_firing(const uint8_t* fire, int* firing) const {
    int n = 0;
    for (int w = 0; w < W; ++w) {
      firing[n] = w;
      n += fire[w];
    }
    return n;
  }

  // ---- norm --------------------------------------------------------------------------------------------

  // A constant near the mean of the perception, the same for all threads: it keeps the second moments from
  // cancelling. The mean over one row in the middle of the group.
  void find_pivot(Scratch& s, const float* source, int group) const {
    const int64_t row = group * plane + int64_t{D / 2} * H + H / 2;
    find_tap_rows(source, row, s.tap_rows);
    perceive_row(s, s.y_row);
    std::fill(s.pivot, s.pivot + V, 0.0f);
    add_column_sums(cell(source, row, 0), Cp, W, Cp, s.pivot);
    add_column_sums(s.y_row, int64_t{F} * Cp, W, F * Cp, s.pivot + Cp);
    for (int v = 0; v < V; ++v) s.pivot[v] /= float(W);
  }

  // Perception of all cells into y [rows][W][F*Cp], and its moments per chunk.
  void perceive_all(Scratch& s, const float* source, float* y, bool with_moments) const {
    int group = -1;
    for_chunks([&](int c) {
      if (with_moments && group != (groups > 1 ? sample_of_chunk(c) : 0)) {
        group = groups > 1 ? sample_of_chunk(c) : 0;
        find_pivot(s, source, group);
      }
      double* total = chunk_moments + int64_t{c} * (V + V * V);
      int64_t pending = 0;
      int n = 0;
      if (with_moments) {
        std::fill(total, total + V + V * V, 0.0);
        std::fill(s.moments, s.moments + int64_t{V} * V, 0.0f);
        std::fill(s.sums, s.sums + V, 0.0f);
      }
      auto add_batch = [&] {
        const StridedRows v{s.v, V};
        outer_product<true>(v, s.v, V, n, V, V, s.moments, V);
        add_column_sums(s.v, V, n, V, s.sums);
        pending += n, n = 0;
      };
      auto fold = [&] {
        for (int i = 0; i < V; ++i) total[i] += s.sums[i], s.sums[i] = 0.0f;
        for (int64_t i = 0; i < int64_t{V} * V; ++i) total[V + i] += s.moments[i], s.moments[i] = 0.0f;
        pending = 0;
      };
      for (int64_t row = chunk_begin(c); row < chunk_end(c); ++row) {
        float* y_row = y + row * W * F * Cp;
        find_tap_rows(source, row, s.tap_rows);
        perceive_row(s, y_row);
        if (!with_moments) continue;
        for (int w = 0; w < W; ++w) {
          centred(cell(source, row, w), y_row + int64_t{w} * F * Cp, s.pivot, s.v + int64_t{n} * V);
          if (++n == kMomentBatch) add_batch();
        }
        if (pending >= kFoldCells) fold();
      }
      if (with_moments) add_batch(), fold();
    });
  }
  void centred(const float* x, const float* y, const float* centre, float* v) const {
    for (int c = 0; c < Cp; c += kVL) store(v + c, load(x + c) - load(centre + c));
    for (int c = 0; c < F * Cp; c += kVL) store(v + Cp + c, load(y + c) - load(centre + Cp + c));
  }

  // Chunk moments -> mean and covariance of each group, [V_logical + V_logical^2], shared among the threads by rows.
  // The order of summation is that of the chunks. Barriers before and after are the caller's.
  void reduce_moments(Scratch& s, const float* source, double* stats) const {
    const int per_group = chunks / groups;
    const double inverse = 1.0 / (double(cells) * (groups > 1 ? 1 : B));
    std::vector<double> shift(V);
    for (int g = 0; g < groups; ++g) {
      const double* moments = chunk_moments + int64_t{g} * per_group * (V + V * V);
      double *mean = stats + g * stats_width(), *covariance = mean + V_logical;
      find_pivot(s, source, g);
      std::fill(shift.begin(), shift.end(), 0.0);
      for (int c = 0; c < per_group; ++c)
        for (int i = 0; i < V; ++i) shift[i] += moments[int64_t{c} * (V + V * V) + i];
      for (double& value : shift) value *= inverse;
      for (int i = omp_get_thread_num(); i < V_logical; i += omp_get_num_threads()) {
        const int ip = padded(i);
        mean[i] = s.pivot[ip] + shift[ip];
        for (int j = i; j < V_logical; ++j) {
          const double* entry = moments + V + int64_t{ip} * V + padded(j);
          double sum = 0;
          for (int c = 0; c < per_group; ++c) sum += entry[int64_t{c} * (V + V * V)];
          covariance[i * V_logical + j] = covariance[j * V_logical + i] = sum * inverse - shift[ip] * shift[padded(j)];
        }
      }
    }
  }

  // hidden = W v is linear in v, so its mean and variance follow from those of v: this thread's share of hidden units.
  void hidden_statistics(const double* stats) const {
    constexpr int kBlock = 16;
    int64_t begin, end;
    share((hp + kBlock - 1) / kBlock, &begin, &end);
    std::vector<double> w(int64_t{V_logical} * kBlock);
    for (int64_t block = begin; block < end; ++block) {
      const int o0 = int(block) * kBlock, n = std::min(kBlock, hp - o0);
      std::fill(w.begin(), w.end(), 0.0);
      for (int v = 0; v < V_logical; ++v)
        for (int q = 0; q < n; ++q) w[v * kBlock + q] = hidden_w[int64_t{padded(v)} * hp + o0 + q];
      for (int g = 0; g < groups; ++g) {
        const double *mean = stats + g * stats_width(), *covariance = mean + V_logical;
        double mu[kBlock] = {}, variance[kBlock] = {};
        for (int i = 0; i < V_logical; ++i) {
          double inner[kBlock] = {};
          for (int j = 0; j < V_logical; ++j)
            for (int q = 0; q < kBlock; ++q) inner[q] += covariance[i * V_logical + j] * w[j * kBlock + q];
          for (int q = 0; q < kBlock; ++q) {
            mu[q] += mean[i] * w[i * kBlock + q];
            variance[q] += inner[q] * w[i * kBlock + q];
          }
        }
        for (int q = 0; q < n; ++q) {
          mean_h[g * hp + o0 + q] = mu[q];
          rstd[g * hp + o0 + q] = 1.0 / std::sqrt(std::max(variance[q], 0.0) + kNormEps);
        }
      }
    }
  }

  // Scale and bias of hidden unit o, so that the activation's input is scale * (hidden_weight . v) + bias, in one slot.
  // `centred`: v has the mean of its group subtracted.
  void slot_affine(int slot, int o, bool centred, double* scale, double* bias) const {
    double a = 1.0, b = hidden_b[o];
    if (has_norm) {
      const int g = groups > 1 ? slot : 0;
      a = args_at(args.norm_weight, o) * rstd[g * hp + o];
      b = args_at(args.norm_bias, o) - (centred ? 0.0 : a * mean_h[g * hp + o]);
    }
    if (args.scale != nullptr) {
      const double m = o < h ? args.scale[slot * h + o] : 0.0;
      a *= m;
      b = m * b + (o < h ? args.shift[slot * h + o] : 0.0);
    }
    *scale = a, *bias = b;
  }
  double args_at(const float* values, int o) const { return o < h ? values[o] : 0.0; }

  // Folds norm and modulation into the first dense layer of every slot, this thread's share of panels' rows.
  void fold_weights(bool centred) const {
    int64_t begin, end;
    share(hp / kVL, &begin, &end);
    for (int slot = 0; slot < slots; ++slot)
      for (int o = int(begin) * kVL; o < end * kVL; ++o) {
        double a, b;
        slot_affine(slot, o, centred, &a, &b);
        folded_b[int64_t{slot} * hp + o] = float(b);
        float* w = folded_w + int64_t{slot} * V * hp;
        for (int v = 0; v < V; ++v) *panel_entry(w, V, hp, v, o) = float(a * hidden_w[int64_t{v} * hp + o]);
      }
  }

  // ---- update ------------------------------------------------------------------------------------------

  template <Start kStart>
  void hidden_panel(const Scratch& s, int slot, int j, int n, bool with_activation) const {
    const Panels w = folded(slot);
    const StridedRows v{s.v, V};
    const float* bias = folded_b + int64_t{slot} * hp + j;
    const int width = w.width(j);
    if (!with_activation)
      product<kStart>(v, w.at(j), width, V, width, bias, s.hidden, kPanel, n);
    else if (leaky)
      product<kStart, Finish::kLeakyRelu>(v, w.at(j), width, V, width, bias, s.hidden, kPanel, n);
    else
      product<kStart, Finish::kRelu>(v, w.at(j), width, V, width, bias, s.hidden, kPanel, n);
  }

  // targets[i] += out_weight . act(hidden(v[i])) for the n gathered cells.
  void update_batch(Scratch& s, int slot, int n, bool gather_dense) const {
    if (n == 0) return;
    if (gather_dense) perceive_dense(s, n, s.v + Cp, V);
    for (int j = 0; j < hp; j += kPanel) {
      const int width = folded(slot).width(j);
      hidden_panel<Start::kBias>(s, slot, j, n, true);
      const FixedRows<kPanel> a{s.hidden};
      if (j == 0)
        product<Start::kZero>(a, out_w, Cp, width, Cp, nullptr, s.delta, Cp, n);
      else
        product<Start::kAccumulate>(a, out_w + int64_t{j} * Cp, Cp, width, Cp, nullptr, s.delta, Cp, n);
    }
    for (int i = 0; i < n; ++i) {
      for (int c = 0; c < Cp; c += kVL) store(s.targets[i] + c, load(s.targets[i] + c) + load(s.delta + i * Cp + c));
      round_values(args.storage, s.targets[i], Cp);
    }
  }

  // One step of this thread's rows: next = current + fire * d(source). `y` holds the perception of all cells, or is
  // null and the perception is computed here. next may be current if y is given.
  void update_rows(Scratch& s, int step, const float* source, const float* current, float* next, const float* y) const {
    const bool gather_dense = dense && y == nullptr;
    for_groups([&](int64_t first, int count, int slot) {
      draw_fire(first, count, step, s.fire);
      int n = 0;
      for (int i = 0; i < count; ++i) {
        const int64_t row = first + i;
        if (next != current) std::memcpy(cell(next, row, -pw), cell(current, row, -pw), sizeof(float) * row_floats);
        const int firing = list_firing(s.fire + int64_t{i} * W, s.firing);
        const float* y_row = y != nullptr ? y + row * W * F * Cp : s.y_row;
        if (y == nullptr) find_tap_rows(source, row, s.tap_rows);
        if (y == nullptr && !dense) perceive_row(s, s.y_row);
        for (int q = 0; q < firing; ++q) {
          const int w = s.firing[q];
          float* v = s.v + int64_t{n} * V;
          if (gather_dense) {
            copy(cell(source, row, w), v, Cp);
            add_cell_taps(s, n, w);
          } else {
            gather(cell(source, row, w), y_row + int64_t{w} * F * Cp, v);
          }
          s.targets[n] = cell(next, row, w);
          if (++n == batch_cells) update_batch(s, slot, n, gather_dense), n = 0;
        }
      }
      update_batch(s, slot, n, gather_dense);
      for (int i = 0; i < count; ++i) fill_halo(next, first + i);
    });
  }
};
