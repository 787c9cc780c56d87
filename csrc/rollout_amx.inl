// The forward rollout of dense perception without norm on a bfloat16 state, with all products on AMX tiles: the firing
// cells' neighbourhoods are gathered into batches, and a batch runs through the three layers.

struct AmxScratch {
  bf16 *taps, *v, *hidden;  // [kAmxBatch][depth of the layer that reads it]
  bf16** targets;           // [kAmxBatch]
  const bf16** tap_rows;    // [taps of D and H]
  uint8_t* fire;            // [rows of a group][W]
  int *firing, *ignored;    // [W] and kFetchAhead more, see list_firing
  int n;                    // gathered cells
};

constexpr int kAmxBatch = kBlock;  // weights stream from L2 all the same, and what is gathered stays in L1

struct AmxRollout : Grid {
  TileMatrix perceive, out;  // [taps*kw*Cp][F*Cp], [h][Cp]
  TileMatrix* hidden;        // [slots] of [(1+F)*Cp][h]
  __mmask16* free_channels;  // [Cp / 16]: neither frozen channels nor padding are written
  AmxScratch* scratch;

  AmxRollout(const RolloutArgs& a, Workspace& w) : Grid(a, w) {
    perceive = take_matrix(tap_count * run, F * Cp, Cp, C), out = take_matrix(hp, Cp, Cp, C);
    hidden = take<TileMatrix>(slots);
    for (int slot = 0; slot < slots; ++slot) hidden[slot] = take_matrix(V, out.depth, out.depth, h);
    free_channels = take_zeros<__mmask16>(Cp / kTile);
    for (int c = args.frozen_channels; c < C; ++c) free_channels[c / kTile] |= __mmask16(1 << c % kTile);
    make_scratch();
  }

  // Of every `period` columns the first `used` are not padding.
  TileMatrix take_matrix(int depth, int columns, int period, int used) {
    depth = round_up(depth, kTileDepth);
    __mmask16* is_used = take_zeros<__mmask16>(columns / kTile);
    for (int j = 0; j < columns; ++j)
      if (j % period < used) is_used[j / kTile] |= __mmask16(1 << j % kTile);
    return {take_zeros<bf16>(int64_t{depth} * columns), take_zeros<float>(columns), is_used, depth, columns};
  }
  void make_scratch() {
    scratch = take<AmxScratch>(args.threads);
    for (int t = 0; t < args.threads; ++t)
      // Zeros, as what pads a depth is never written, and must not be a NaN.
      scratch[t] = {take_zeros<bf16>(int64_t{kAmxBatch} * perceive.depth),
                    take_zeros<bf16>(int64_t{kAmxBatch} * hidden[0].depth),
                    take_zeros<bf16>(int64_t{kAmxBatch} * out.depth),
                    take<bf16*>(kAmxBatch),
                    take<const bf16*>(tap_count),
                    take<uint8_t>(int64_t{rows_per_group()} * W),
                    take<int>(W + kFetchAhead),
                    take<int>(W + kFetchAhead),
                    0};
  }

  // ---- weights: this thread's share ----------------------------------------------------------------------

  void pack_weights() const {
    int64_t begin, end;
    const int taps = tap_count * kw;
    share(F * C, &begin, &end);
    for (int column = int(begin); column < end; ++column) {
      const int j = padded(column);  // f * Cp + channel
      perceive.bias[j] = args.perceive_bias[column];
      for (int c = 0; c < C; ++c)
        for (int t = 0; t < taps; ++t)
          perceive.set(t * Cp + c, j, args.perceive_weight[(int64_t{column} * C + c) * taps + t]);
    }
    share(h, &begin, &end);
    for (int o = int(begin); o < end; ++o) {
      for (int slot = 0; slot < slots; ++slot) pack_hidden(slot, o);
      for (int c = args.frozen_channels; c < C; ++c) out.set(o, c, args.out_weight[int64_t{c} * h + o]);
    }
  }
  // Modulation folds into the layer: scale * (w v + b) + shift.
  void pack_hidden(int slot, int o) const {
    const bool modulated = args.scale != nullptr;
    const float scale = modulated ? args.scale[int64_t{slot} * h + o] : 1.0f;
    hidden[slot].bias[o] = scale * args.hidden_bias[o] + (modulated ? args.shift[int64_t{slot} * h + o] : 0.0f);
    for (int v = 0; v < V_logical; ++v)
      hidden[slot].set(padded(v), o, scale * args.hidden_weight[int64_t{o} * V_logical + v]);
  }

  // ---- states ---------------------------------------------------------------------------------------------

  void load_bits(const void* from, bf16* state) const {
    const bf16* values = static_cast<const bf16*>(from);
    for_rows([&](int64_t row) {
      if (C == Cp) std::memcpy(cell(state, row, 0), values + row * W * C, sizeof(bf16) * W * C);
      for (int w = 0; C != Cp && w < W; ++w) {
        std::memcpy(cell(state, row, w), values + (row * W + w) * C, sizeof(bf16) * C);
        std::fill(cell(state, row, w) + C, cell(state, row, w) + Cp, bf16{0});
      }
      fill_halo(state, row);
    });
  }
  void store_bits(const bf16* state, void* to) const {
    bf16* values = static_cast<bf16*>(to);
    for_rows([&](int64_t row) {
      for (int w = 0; w < W; ++w) std::memcpy(values + (row * W + w) * C, cell(state, row, w), sizeof(bf16) * C);
    });
  }

  // ---- one step -------------------------------------------------------------------------------------------

  void gather(AmxScratch& s, int w, const bf16* centre, bf16* target) const {
    bf16* taps = s.taps + int64_t{s.n} * perceive.depth;
    for (int r = 0; r < tap_count; ++r) copy(s.tap_rows[r] + int64_t{w} * Cp, taps + r * run, run);
    copy(centre, s.v + int64_t{s.n} * hidden[0].depth, Cp);
    s.targets[s.n++] = target;
  }

  template <bool kLeaky>
  void update_batch(AmxScratch& s, int slot) const {
    const int64_t v_stride = hidden[0].depth, h_stride = out.depth;
    tile_product(s.taps, perceive.depth, perceive, s.n,
                 [&](int i, int j, auto... y) { store_rounded(y..., s.v + i * v_stride + Cp + j); });
    tile_product(s.v, v_stride, hidden[slot], s.n,
                 [&](int i, int j, auto... u) { store_rounded(activate<kLeaky>(u)..., s.hidden + i * h_stride + j); });
    tile_product(s.hidden, h_stride, out, s.n, [&](int i, int j, auto... d) {
      if (i >= s.n) return;
      ((store_rounded(widen(s.targets[i] + j) + d, free_channels[j / kTile], s.targets[i] + j), j += kTile), ...);
    });
    s.n = 0;
  }
  void flush(AmxScratch& s, int slot) const { leaky ? update_batch<true>(s, slot) : update_batch<false>(s, slot); }

  // Where a step writes: into a padded state, or where rows follow each other, into the result.
  struct Rows {
    bf16* cells;
    int64_t stride;
    bool has_halo;
  };
  Rows padded_rows(bf16* state) const { return {cell(state, 0, 0), row_floats, true}; }
  Rows unpadded_rows(void* state) const { return {static_cast<bf16*>(state), int64_t{W} * C, false}; }

  // One step of this thread's rows: next = current + fire * d(source).
  void update_rows(AmxScratch& s, int step, const bf16* source, const bf16* current, const Rows& next) const {
    int gathered_slot = 0;
    for_groups([&](int64_t first, int count, int slot) {
      if (slot != gathered_slot) flush(s, gathered_slot);
      gathered_slot = slot;
      draw_fire(first, count, step, s.fire);
      for (int i = 0; i < count; ++i) {
        const int64_t row = first + i;
        bf16* target = next.cells + row * next.stride;
        std::memcpy(target, cell(current, row, 0), sizeof(bf16) * W * Cp);
        find_tap_rows(source, row, s.tap_rows);
        const int firing = list_firing(s.fire + int64_t{i} * W, 1, s.firing, s.ignored);
        for (int q = 0; q < firing; ++q) {
          gather(s, s.firing[q], cell(source, row, s.firing[q]), target + int64_t{s.firing[q]} * Cp);
          if (s.n == kAmxBatch) flush(s, slot);
        }
      }
    });
    flush(s, gathered_slot);
    if (next.has_halo) for_rows([&](int64_t row) { fill_halo(next.cells - int64_t{pw} * Cp, row); });
  }
};

static void rollout_amx(const ForwardArgs& args) {
  Workspace& workspace = Workspace::get();
  {
    AmxRollout e(args, workspace);
    bf16 *current = e.take<bf16>(e.state_floats), *next = e.take<bf16>(e.state_floats);
    bf16* source = args.perceive_from != nullptr ? e.take<bf16>(e.state_floats) : nullptr;
    const bool writes_result = e.C == e.Cp;  // the last step, without another copy

#pragma omp parallel num_threads(args.threads)
    {
      AmxScratch& s = e.scratch[omp_get_thread_num()];
      bf16 *from = current, *to = next;
      configure_tiles();
      e.pack_weights();
      e.load_bits(args.state, from);
      if (source != nullptr) e.load_bits(args.perceive_from, source);
#pragma omp barrier
      for (int step = 0; step < args.steps; ++step) {
        e.begin_step(step);
        const bool is_last = writes_result && step + 1 == args.steps;
        e.update_rows(s, step, source != nullptr ? source : from, from,
                      is_last ? e.unpadded_rows(args.out) : e.padded_rows(to));
        std::swap(from, to);
#pragma omp barrier
        if (e.ends_at(step)) break;
      }
      if (!writes_result) e.store_bits(from, args.out);
      release_tiles();
    }
  }
  workspace.trim();
}
