// The grid of one call: sizes rounded up to whole vectors, the pieces of work, padded states and fire bits.

static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Index that padding reads for i in [-p, n + p); -1 is a zero.
static inline int padded_index(int i, int n, Padding padding) {
  if (i >= 0 && i < n) return i;
  switch (padding) {
    case Padding::kReflect:
      return i < 0 ? -i : 2 * n - 2 - i;
    case Padding::kReplicate:
      return i < 0 ? 0 : n - 1;
    case Padding::kCircular:
      return ((i % n) + n) % n;
    default:
      return -1;
  }
}

constexpr int kSmallBatch = 24, kLargeBatch = 96;  // firing cells per product; small while all weights fit in L1
constexpr int kMomentBatch = 96;                   // cells per update of the second moments
constexpr int kFoldCells = 1024;                   // float32 sums run over at most about so many cells
constexpr int kGroupCells = 1024;                  // cells whose fire bits are drawn at once
constexpr int kFetchAhead = 24;                    // cells

struct Grid {
  const RolloutArgs& args;
  Workspace& workspace;

  int B, D, H, W, C, Cp, F, V, h, hp;  // Cp, hp: rounded up to whole vectors; V = (1+F)*Cp
  int V_logical;                       // (1+F)*C, the order of the caller's arrays
  int kd, kh, kw, pd, ph, pw;
  int tap_count;                     // rows under the filter: kd*kh
  int run;                           // floats under the filter in one of them: kw*Cp
  int64_t rows, plane, cells;        // rows of the batch; rows and cells of one sample
  int64_t row_floats, state_floats;  // of a padded row and state
  bool dense, has_norm, leaky, whole_fires;
  int groups, slots;              // samples that share norm statistics; weights that differ by sample
  int chunks_per_sample, chunks;  // fixed pieces of work, so that sums do not depend on the thread count
  int *map_d, *map_h, *map_w;     // what padding reads, for indices from -pad on
  float* zero_row;

  Grid(const RolloutArgs& a, Workspace& w) : args(a), workspace(w) {
    B = a.batch, D = a.size[0], H = a.size[1], W = a.size[2];
    C = a.channels, F = a.filters, h = a.hidden;
    Cp = round_up(C, kVL), hp = round_up(h, kVL), V = (1 + F) * Cp, V_logical = (1 + F) * C;
    kd = a.kernel[0], kh = a.kernel[1], kw = a.kernel[2];
    pd = kd / 2, ph = kh / 2, pw = kw / 2, tap_count = kd * kh, run = kw * Cp;
    plane = int64_t{D} * H, rows = B * plane, cells = plane * W;
    row_floats = int64_t{W + 2 * pw} * Cp, state_floats = rows * row_floats;
    dense = a.perception == Perception::kDense, has_norm = a.norm != Norm::kNone;
    leaky = a.activation == Activation::kLeakyRelu, whole_fires = a.fire_threshold >= (uint64_t{1} << 32);
    groups = a.norm == Norm::kInstance ? B : 1;
    slots = groups > 1 || a.scale != nullptr ? B : 1;
    const int64_t moment_bytes = int64_t{8} * (V + int64_t{V} * V);  // of a chunk, with a norm
    const int wanted = has_norm ? int(std::clamp<int64_t>((int64_t{8} << 20) / moment_bytes, 16, 128)) : 512;
    // Not below 512 cells either: shorter pieces leave products and fire bits half empty.
    chunks_per_sample = int(std::clamp<int64_t>(cells / 512, 1, std::min<int64_t>(plane, std::max(1, wanted / B))));
    chunks = B * chunks_per_sample;
    make_maps();
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
  // Nothing more is done once the rollout is interrupted; begin_step and ends_at take all threads out of it.
  bool goes_on() const { return args.interrupt == nullptr || !args.interrupt->is_set(); }
  void worked(int64_t num_rows) const {
    if (args.interrupt != nullptr && omp_get_thread_num() == 0) args.interrupt->worked(num_rows * W);
  }
  void begin_step(int64_t step) const {
    if (args.interrupt != nullptr && omp_get_thread_num() == 0) args.interrupt->begin_step(step);
  }
  bool ends_at(int64_t step) const { return args.interrupt != nullptr && args.interrupt->ends_at(step); }

  template <class Body>  // body(chunk)
  void for_chunks(Body body) const {
    int64_t begin, end;
    share(chunks, &begin, &end);
    for (int64_t c = begin; c < end && goes_on(); ++c) {
      body(int(c));
      worked(chunk_end(int(c)) - chunk_begin(int(c)));
    }
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
      for (int64_t r = chunk_begin(c); r < chunk_end(c) && goes_on(); r += step) {
        body(r, int(std::min<int64_t>(step, chunk_end(c) - r)), slots > 1 ? sample_of_chunk(c) : 0);
        worked(step);
      }
    });
  }

  // ---- padded states -----------------------------------------------------------------------------------

  // T: float, or how the values of a state are stored.
  template <class T>
  T* cell(T* state, int64_t row, int w) const {
    return state + row * row_floats + int64_t{w + pw} * Cp;
  }

  template <class T>
  void fill_halo(T* state, int64_t row) const {
    for (int i = 1; i <= pw; ++i)
      for (int w : {-i, W - 1 + i}) {
        if (map_w[w] < 0)
          std::memset(cell(state, row, w), 0, sizeof(T) * Cp);
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
  template <class T>
  void find_tap_rows(const T* state, int64_t row, const T** taps) const {
    const int64_t sample = row / plane;
    const int d = int(row % plane / H), y = int(row % H);
    for (int i = -pd; i <= pd; ++i)
      for (int j = -ph; j <= ph; ++j) {
        const int dd = map_d[d + i], yy = map_h[y + j];
        *taps++ = dd < 0 || yy < 0 ? (const T*)zero_row : state + ((sample * D + dd) * H + yy) * row_floats;
      }
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
    const uint32_t threshold = uint32_t(args.fire_threshold);
    uint32_t x[kLanes], row[kLanes], bits[kLanes];  // bits: four bytes, one per cell
    struct Piece {
      int row, lane, lanes;
      int64_t block;
    } pieces[kLanes];  // what of the lanes belongs to one row of the group
    int64_t block = 0;
    for (int r = 0; r < count;) {
      int n = 0, num_pieces = 0;
      while (n < kLanes && r < count) {
        const int lanes = int(std::min<int64_t>(kLanes - n, blocks - block));
        pieces[num_pieces++] = {r, n, lanes, block};
        for (int i = 0; i < lanes; ++i) x[n + i] = uint32_t(x_begin + block + i), row[n + i] = global_row(first + r);
        n += lanes, block += lanes;
        if (block == blocks) block = 0, ++r;
      }
      for (int i = n; i < kLanes; ++i) x[i] = row[i] = 0;
#pragma GCC ivdep
      for (int i = 0; i < kLanes; ++i) {
        uint32_t word[4];
        philox4x32(x[i], row[i], sample, t, k0, k1, word);
        bits[i] = pack_bytes(word[0] < threshold, word[1] < threshold, word[2] < threshold, word[3] < threshold);
      }
      for (int p = 0; p < num_pieces; ++p) {
        const Piece& piece = pieces[p];
        const int64_t begin = (x_begin + piece.block) * 4 - args.origin[2];  // first and last cells may lie outside
        const int64_t from = std::max<int64_t>(begin, 0), to = std::min<int64_t>(begin + 4 * piece.lanes, W);
        std::memcpy(fire + int64_t{piece.row} * W + from, (const char*)(bits + piece.lane) + (from - begin), to - from);
      }
    }
  }
  static uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return a | b << 8 | c << 16 | d << 24;
#else
    return d | c << 8 | b << 16 | a << 24;
#endif
  }
  uint32_t global_row(int64_t row) const {
    const uint64_t d = uint64_t(args.origin[0]) + row % plane / H, y = uint64_t(args.origin[1]) + row % H;
    return uint32_t(d * uint64_t(args.extent[1]) + y);  // unsigned, as it may overflow
  }
  // The firing cells of `count` rows: where they lie in an array of cells and in a padded state, in cells from the
  // first. Behind them follow kFetchAhead more entries that may be read.
  int list_firing(const uint8_t* fire, int count, int* cells_at, int* padded_at) const {
    const int width = W;
    int n = 0;
    for (int r = 0; r < count; ++r)
      for (int w = 0; w < width; ++w) {
        cells_at[n] = r * width + w;
        padded_at[n] = r * (width + 2 * pw) + w;
        n += fire[r * width + w];
      }
    std::fill(cells_at + n, cells_at + n + kFetchAhead, 0);
    std::fill(padded_at + n, padded_at + n + kFetchAhead, 0);
    return n;
  }
};
