#pragma once

#include <string>

namespace ncakern {
// FLOP/s in float32 of `threads` threads with the vectors of `isa`, a name of variants.inc; the best of `rounds`
// rounds.
double fma_peak(int threads, int rounds, const std::string& isa);
}  // namespace ncakern
