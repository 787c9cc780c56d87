// What the FMA units reach with vectors of kVL floats: independent chains of x = x * m + a in registers, more of them
// than one FMA takes cycles. Where the instruction set has no FMA, a product and a sum take its place.

typedef float vf __attribute__((vector_size(4 * kVL)));

// FLOP/s of `threads` threads, the best of `rounds` rounds of some milliseconds each.
static double fma_peak(int threads, int rounds) {
  constexpr int kLinks = 1 << 20;
  double best = 0;
  Clock::time_point begin;
  volatile float used = 0;
#pragma omp parallel num_threads(threads)
  for (int round = 0; round < rounds; ++round) {
    const vf m = 0.999f - vf{}, a = 0.001f - vf{};
    vf chain[kChains];
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) chain[i] = float(i) - vf{};
#pragma omp barrier
#pragma omp master
    begin = Clock::now();
#pragma omp barrier
    for (int link = 0; link < kLinks; ++link)
#pragma GCC unroll 32
      for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * m + a;
#pragma omp barrier
#pragma omp master
    best = std::max(
        best, 2.0 * kVL * kChains * kLinks * threads / std::chrono::duration<double>(Clock::now() - begin).count());
    for (int i = 1; i < kChains; ++i) chain[0] += chain[i];
#pragma omp critical
    used = used + chain[0][0];
  }
  return best;
}
