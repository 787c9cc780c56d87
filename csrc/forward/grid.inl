// The grid of one call: sizes rounded up to whole vectors, what padding reads, and the pieces of work.

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
  bool dense, has_norm, whole_fires;
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
    whole_fires = a.fire_threshold >= (uint64_t{1} << 32);
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

  int rows_per_group() const { return std::max(1, kGroupCells / W); }
  int group_of_slot(int slot) const { return groups > 1 ? slot : 0; }
  int first_slot(int group) const { return groups > 1 ? group : 0; }
  int last_slot(int group) const { return groups > 1 ? group + 1 : slots; }  // one behind
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

  // Of a padded state. T: float, or how the values of a state are stored.
  template <class T>
  T* cell(T* state, int64_t row, int w) const {
    return state + row * row_floats + int64_t{w + pw} * Cp;
  }
};
