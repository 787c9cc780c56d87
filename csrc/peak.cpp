// A micro-benchmark: the floating-point peak that this CPU reaches with vectors of one width.
#include "peak.h"

#include <algorithm>
#include <chrono>

namespace ncakern {
namespace {
using Clock = std::chrono::steady_clock;

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,fma")
namespace avx512 {
constexpr int kVL = 16, kChains = 24;
#include "peak.inl"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int kVL = 8, kChains = 12;
#include "peak.inl"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace baseline {
constexpr int kVL = 4, kChains = 12;
#include "peak.inl"
}  // namespace baseline
}  // namespace

double fma_peak(int threads, int rounds, const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512") return avx512::fma_peak(threads, rounds);
  if (isa == "avx2") return avx2::fma_peak(threads, rounds);
#endif
  return baseline::fma_peak(threads, rounds);
}
}  // namespace ncakern
