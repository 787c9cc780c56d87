// Loops over cells. They are free functions that take their sizes by value: a store might change a member, for all that
// the compiler knows.

constexpr int kFetchAhead = 24;  // cells

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
NCA_INLINE vf unchanged(vf v, vf) { return v; }
NCA_INLINE vf difference(vf v, vf centre) { return v - centre; }

// to[i] = from[i] - centre
static inline void subtract(const float* from, int channels, const float* centre, int n, float* to, int64_t to_cell) {
  for (int c = 0; c < channels; c += kVL) {
    const vf m = load(centre + c);
    for (int i = 0; i < n; ++i) store(to + i * to_cell + c, load(from + int64_t{i} * channels + c) - m);
  }
}

// targets[i] += delta[i] where the mask has ones
static inline void add_masked(const float* delta, int channels, const float* mask, int n, float* const* targets) {
  for (int c = 0; c < channels; c += kVL) {
    const vf free = load(mask + c);
    for (int i = 0; i < n; ++i) {
      float* target = targets[i] + c;
      store(target, load(target) + masked(load(delta + int64_t{i} * channels + c), free));
    }
  }
}

// A NaN passes, as in torch.
NCA_INLINE vf clamped(vf v, vf low, vf high) { return v < low ? low : (v > high ? high : v); }

// What of n cells the mask has ones for is clamped.
static inline void clamp_cells(float* cells, int channels, const float* mask, int n, float low, float high) {
  for (int c = 0; c < channels; c += kVL) {
    const vi free = (vi)load(mask + c);
    for (int i = 0; i < n; ++i) {
      float* at = cells + int64_t{i} * channels + c;
      const vf v = load(at);
      store(at, free != 0 ? clamped(v, splat(low), splat(high)) : v);
    }
  }
}
// The same for the gradient d of the result, which passes where the clamp changed nothing; bounds do not count as
// changed.
static inline void clamp_cells_bwd(const float* cells, float* d, int channels, const float* mask, int n, float low,
                                   float high) {
  for (int c = 0; c < channels; c += kVL) {
    const vi is_fixed = (vi)load(mask + c) == 0;
    for (int i = 0; i < n; ++i) {
      const vf v = load(cells + int64_t{i} * channels + c);
      float* at = d + int64_t{i} * channels + c;
      const vi passes = (v >= splat(low)) & (v <= splat(high));
      store(at, (is_fixed | passes) != 0 ? load(at) : vf{});
    }
  }
}

// Columns that pad to whole vectors: an infinity times their zero weights is not zero.
static inline void clear_columns(float* rows, int64_t stride, int from, int to, int n) {
  for (int i = 0; from < to && i < n; ++i) std::fill(rows + i * stride + from, rows + i * stride + to, 0.0f);
}
