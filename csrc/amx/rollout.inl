// The forward rollout of dense perception without norm on a bfloat16 state, with all products on AMX tiles: the firing
// cells' neighbourhoods are gathered into batches, and a batch runs through the three layers.

constexpr int kAmxBatch = kBlock;  // weights stream from L2 all the same, and what is gathered stays in L1

struct AmxScratch {
  bf16 *taps, *v, *hidden;  // [kAmxBatch][depth of the layer that reads it]
  bf16** targets;           // [kAmxBatch]
  const bf16** tap_rows;    // [taps of D and H]
  uint8_t* fire;            // [rows of a group][W]
  int *firing, *ignored;    // [W] and kFetchAhead more, see list_firing
  int n;                    // gathered cells
};

// The weights of all layers as tiles.
struct AmxLayers {
  const Grid& grid;
  const RolloutArgs& args;
  TileMatrix perceive, out;  // [taps*kw*Cp][F*Cp], [h][Cp]
  TileMatrix* hidden;        // [slots] of [(1+F)*Cp][h]

  explicit AmxLayers(Grid& g) : grid(g), args(g.args) {
    perceive = take_matrix(g, g.tap_count * g.run, g.F * g.Cp, g.Cp, g.C);
    out = take_matrix(g, g.hp, g.Cp, g.Cp, g.C);
    hidden = g.take<TileMatrix>(g.slots);
    for (int slot = 0; slot < g.slots; ++slot) hidden[slot] = take_matrix(g, g.V, out.depth, out.depth, g.h);
  }
  // Of every `period` columns the first `used` are not padding.
  static TileMatrix take_matrix(Grid& grid, int depth, int columns, int period, int used) {
    depth = round_up(depth, kTileDepth);
    __mmask16* is_used = grid.take_zeros<__mmask16>(columns / kTile);
    for (int j = 0; j < columns; ++j)
      if (j % period < used) is_used[j / kTile] |= __mmask16(1 << j % kTile);
    return {grid.take_zeros<bf16>(int64_t{depth} * columns), grid.take_zeros<float>(columns), is_used, depth, columns};
  }

  // This thread's share.
  void pack() const {
    const int C = grid.C, Cp = grid.Cp, taps = grid.tap_count * grid.kw;
    int64_t begin, end;
    Grid::share(grid.F * C, &begin, &end);
    for (int column = int(begin); column < end; ++column) {
      const int j = grid.padded(column);  // f * Cp + channel
      perceive.bias[j] = args.perceive_bias[column];
      for (int c = 0; c < C; ++c)
        for (int t = 0; t < taps; ++t)
          perceive.set(t * Cp + c, j, args.perceive_weight[(int64_t{column} * C + c) * taps + t]);
    }
    Grid::share(args.out_bias != nullptr ? C : 0, &begin, &end);
    for (int64_t c = begin; c < end; ++c) out.bias[c] = args.out_bias[c];
    Grid::share(grid.h, &begin, &end);
    for (int o = int(begin); o < end; ++o) {
      for (int slot = 0; slot < grid.slots; ++slot) pack_hidden(slot, o);
      for (int c = args.frozen_channels; c < C; ++c) out.set(o, c, args.out_weight[int64_t{c} * grid.h + o]);
    }
  }
  // Modulation folds into the layer: scale * (w v + b) + shift.
  void pack_hidden(int slot, int o) const {
    const bool modulated = args.scale != nullptr;
    const int64_t at = int64_t{slot} * grid.h + o;
    const float scale = modulated ? args.scale[at] : 1.0f;
    hidden[slot].bias[o] = scale * args.hidden_bias[o] + (modulated ? args.shift[at] : 0.0f);
    for (int v = 0; v < grid.V_logical; ++v)
      hidden[slot].set(grid.padded(v), o, scale * args.hidden_weight[int64_t{o} * grid.V_logical + v]);
  }
};

// A state as it is stored -> this thread's rows of a padded one.
static void load_bits(const Grid& grid, const void* from, bf16* state) {
  const bf16* values = static_cast<const bf16*>(from);
  const int W = grid.W, C = grid.C, Cp = grid.Cp;
  grid.for_rows([&](int64_t row) {
    bf16* to = grid.cell(state, row, 0);
    if (C == Cp) std::memcpy(to, values + row * W * C, sizeof(bf16) * W * C);
    for (int w = 0; C != Cp && w < W; ++w, to += Cp) {
      std::memcpy(to, values + (row * W + w) * C, sizeof(bf16) * C);
      std::fill(to + C, to + Cp, bf16{0});
    }
    fill_halo(grid, state, row);
  });
}
static void store_bits(const Grid& grid, const bf16* state, void* to) {
  bf16* values = static_cast<bf16*>(to);
  const int W = grid.W, C = grid.C;
  grid.for_rows([&](int64_t row) {
    for (int w = 0; w < W; ++w) std::memcpy(values + (row * W + w) * C, grid.cell(state, row, w), sizeof(bf16) * C);
  });
}

// Where a step writes: into a padded state, or where rows follow each other, into the result.
struct AmxRows {
  bf16* cells;
  int64_t stride;
  bool has_halo;
};
static AmxRows padded_rows(const Grid& grid, bf16* state) { return {grid.cell(state, 0, 0), grid.row_floats, true}; }
static AmxRows unpadded_rows(const Grid& grid, void* state) {
  return {static_cast<bf16*>(state), int64_t{grid.W} * grid.C, false};
}

struct AmxUpdate {
  const Grid& grid;
  const AmxLayers& layers;
  __mmask16* free_channels;  // [Cp / 16]: neither frozen channels nor padding are written
  AmxScratch* scratch;       // one per thread

  AmxUpdate(Grid& g, const AmxLayers& l) : grid(g), layers(l) {
    free_channels = g.take_zeros<__mmask16>(g.Cp / kTile);
    for (int c = g.args.frozen_channels; c < g.C; ++c) free_channels[c / kTile] |= __mmask16(1 << c % kTile);
    scratch = g.take<AmxScratch>(g.args.threads);
    for (int t = 0; t < g.args.threads; ++t)
      // Zeros, as what pads a depth is never written, and must not be a NaN.
      scratch[t] = {g.take_zeros<bf16>(int64_t{kAmxBatch} * l.perceive.depth),
                    g.take_zeros<bf16>(int64_t{kAmxBatch} * l.hidden[0].depth),
                    g.take_zeros<bf16>(int64_t{kAmxBatch} * l.out.depth),
                    g.take<bf16*>(kAmxBatch),
                    g.take<const bf16*>(g.tap_count),
                    g.take<uint8_t>(int64_t{g.rows_per_group()} * g.W),
                    g.take<int>(g.W + kFetchAhead),
                    g.take<int>(g.W + kFetchAhead),
                    0};
  }

  void gather_cell(AmxScratch& s, int w, const bf16* centre, bf16* target) const {
    const int run = grid.run, Cp = grid.Cp;
    bf16* taps = s.taps + int64_t{s.n} * layers.perceive.depth;
    for (int r = 0; r < grid.tap_count; ++r) copy(s.tap_rows[r] + int64_t{w} * Cp, taps + r * run, run);
    copy(centre, s.v + int64_t{s.n} * layers.hidden[0].depth, Cp);
    s.targets[s.n++] = target;
  }

  template <Activation kKind>
  void update_batch(AmxScratch& s, int slot) const {
    const int64_t v_stride = layers.hidden[0].depth, h_stride = layers.out.depth;
    bf16* y = s.v + grid.Cp;
    tile_product(s.taps, layers.perceive.depth, layers.perceive, s.n,
                 [&](int i, int j, auto... sums) { store_rounded(sums..., y + i * v_stride + j); });
    tile_product(s.v, v_stride, layers.hidden[slot], s.n,
                 [&](int i, int j, auto... u) { store_rounded(activate<kKind>(u)..., s.hidden + i * h_stride + j); });
    tile_product(s.hidden, h_stride, layers.out, s.n, [&](int i, int j, auto... d) {
      if (i >= s.n) return;
      ((store_rounded(widen(s.targets[i] + j) + d, free_channels[j / kTile], s.targets[i] + j), j += kTile), ...);
    });
    s.n = 0;
  }
  void flush(AmxScratch& s, int slot) const {
    if (grid.args.activation == Activation::kLeakyRelu)
      update_batch<Activation::kLeakyRelu>(s, slot);
    else
      update_batch<Activation::kRelu>(s, slot);
  }

  // One step of this thread's rows: next = current + fire * d(source).
  void update_rows(AmxScratch& s, int step, const bf16* source, const bf16* current, const AmxRows& next) const {
    const int W = grid.W, Cp = grid.Cp;
    int gathered_slot = 0;
    grid.for_groups([&](int64_t first, int count, int slot) {
      if (slot != gathered_slot) flush(s, gathered_slot);
      gathered_slot = slot;
      draw_fire(grid, first, count, step, s.fire);
      for (int i = 0; i < count; ++i) {
        const int64_t row = first + i;
        bf16* target = next.cells + row * next.stride;
        std::memcpy(target, grid.cell(current, row, 0), sizeof(bf16) * W * Cp);
        find_tap_rows(grid, source, row, s.tap_rows);
        const int firing = list_firing(grid, s.fire + int64_t{i} * W, 1, s.firing, s.ignored);
        for (int q = 0; q < firing; ++q) {
          gather_cell(s, s.firing[q], grid.cell(source, row, s.firing[q]), target + int64_t{s.firing[q]} * Cp);
          if (s.n == kAmxBatch) flush(s, slot);
        }
      }
    });
    flush(s, gathered_slot);
    bf16* padded = next.cells - int64_t{grid.pw} * Cp;
    if (next.has_halo) grid.for_rows([&](int64_t row) { fill_halo(grid, padded, row); });
  }
};

static void rollout_amx(const ForwardArgs& args) {
  Workspace& workspace = Workspace::get();
  {
    Grid grid(args, workspace);
    const AmxLayers layers(grid);
    const AmxUpdate update(grid, layers);
    bf16 *current = grid.take<bf16>(grid.state_floats), *next = grid.take<bf16>(grid.state_floats);
    bf16* source = args.perceive_from != nullptr ? grid.take<bf16>(grid.state_floats) : nullptr;
    const bool writes_result = grid.C == grid.Cp;  // the last step, without another copy

#pragma omp parallel num_threads(args.threads)
    {
      AmxScratch& s = update.scratch[omp_get_thread_num()];
      bf16 *from = current, *to = next;
      configure_tiles();
      layers.pack();
      load_bits(grid, args.state, from);
      if (source != nullptr) load_bits(grid, args.perceive_from, source);
#pragma omp barrier
      for (int step = 0; step < args.steps; ++step) {
        grid.begin_step(step);
        const bool is_last = writes_result && step + 1 == args.steps;
        update.update_rows(s, step, source != nullptr ? source : from, from,
                           is_last ? unpadded_rows(grid, args.out) : padded_rows(grid, to));
        std::swap(from, to);
#pragma omp barrier
        if (grid.ends_at(step)) break;
      }
      if (!writes_result) store_bits(grid, from, args.out);
      release_tiles();
    }
  }
  workspace.trim();
}
