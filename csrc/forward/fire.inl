// Which cells update in a step, and where they lie.

constexpr int kLanes = 64;  // Philox blocks of four cells that are computed in one loop

// Blocks of consecutive rows. Short rows share a loop, since they would leave vectors half empty.
struct FireLanes {
  uint32_t x[kLanes], row[kLanes], bits[kLanes];  // counters, and four bytes each, one per cell
  struct Piece {
    int row, lane, lanes;
    int64_t block;
  } pieces[kLanes];  // what of the lanes belongs to one row
  int num_pieces;
};

static inline uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return a | b << 8 | c << 16 | d << 24;
#else
  return d | c << 8 | b << 16 | a << 24;
#endif
}

static inline uint32_t global_row(const Grid& grid, int64_t row) {
  const RolloutArgs& args = grid.args;
  const uint64_t d = uint64_t(args.origin[0]) + row % grid.plane / grid.H;
  const uint64_t y = uint64_t(args.origin[1]) + row % grid.H;
  return uint32_t(d * uint64_t(args.extent[1]) + y);  // unsigned, as it may overflow
}

// Fills the lanes from block `block` of row first + r on, and moves both behind what was taken.
static inline void fill_lanes(const Grid& grid, int64_t first, int count, int64_t x_begin, int64_t blocks,
                              FireLanes& lanes, int& r, int64_t& block) {
  int n = 0;
  lanes.num_pieces = 0;
  while (n < kLanes && r < count) {
    const int taken = int(std::min<int64_t>(kLanes - n, blocks - block));
    lanes.pieces[lanes.num_pieces++] = {r, n, taken, block};
    const uint32_t row = global_row(grid, first + r);
    for (int i = 0; i < taken; ++i) lanes.x[n + i] = uint32_t(x_begin + block + i), lanes.row[n + i] = row;
    n += taken, block += taken;
    if (block == blocks) block = 0, ++r;
  }
  for (int i = n; i < kLanes; ++i) lanes.x[i] = lanes.row[i] = 0;
}

static inline void draw_lanes(FireLanes& lanes, uint32_t sample, uint32_t step, uint64_t seed, uint32_t threshold) {
  const uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma GCC ivdep
  for (int i = 0; i < kLanes; ++i) {
    uint32_t word[4];
    philox4x32(lanes.x[i], lanes.row[i], sample, step, k0, k1, word);
    lanes.bits[i] = pack_bytes(word[0] < threshold, word[1] < threshold, word[2] < threshold, word[3] < threshold);
  }
}

// fire[i][w] = 1 where cell w of row first + i updates in `step`. All rows are of one sample.
static inline void draw_fire(const Grid& grid, int64_t first, int count, int step, uint8_t* fire) {
  const RolloutArgs& args = grid.args;
  const int W = grid.W;
  if (grid.whole_fires) {
    std::memset(fire, 1, size_t(count) * W);
    return;
  }
  const int64_t x_begin = args.origin[2] >> 2, blocks = ((args.origin[2] + W - 1) >> 2) - x_begin + 1;
  const uint32_t sample = args.first_sample + uint32_t(first / grid.plane);
  FireLanes lanes;
  int64_t block = 0;
  for (int r = 0; r < count;) {
    fill_lanes(grid, first, count, x_begin, blocks, lanes, r, block);
    draw_lanes(lanes, sample, args.first_step + uint32_t(step), args.seed, uint32_t(args.fire_threshold));
    for (int p = 0; p < lanes.num_pieces; ++p) {
      const FireLanes::Piece& piece = lanes.pieces[p];
      const int64_t begin = (x_begin + piece.block) * 4 - args.origin[2];  // first and last cells may lie outside
      const int64_t from = std::max<int64_t>(begin, 0), to = std::min<int64_t>(begin + 4 * piece.lanes, W);
      const char* bytes = reinterpret_cast<const char*>(lanes.bits + piece.lane);
      std::memcpy(fire + int64_t{piece.row} * W + from, bytes + (from - begin), to - from);
    }
  }
}

// The firing cells of `count` rows: where they lie in an array of cells and in a padded state, in cells from the
// first. Behind them follow kFetchAhead more entries that may be read.
static inline int list_firing(const Grid& grid, const uint8_t* fire, int count, int* cells_at, int* padded_at) {
  const int width = grid.W, margin = 2 * grid.pw;
  int n = 0;
  for (int r = 0; r < count; ++r)
    for (int w = 0; w < width; ++w) {
      cells_at[n] = r * width + w;
      padded_at[n] = r * (width + margin) + w;
      n += fire[r * width + w];
    }
  std::fill(cells_at + n, cells_at + n + kFetchAhead, 0);
  std::fill(padded_at + n, padded_at + n + kFetchAhead, 0);
  return n;
}
