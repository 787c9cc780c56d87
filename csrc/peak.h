#pragma once

namespace ncakern {
// FLOP/s in float32 of `threads` threads, the best of `rounds` rounds.
double fma_peak(int threads, int rounds);
}  // namespace ncakern
