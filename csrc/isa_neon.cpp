// Advanced SIMD, part of every armv8-a.
#include "isa_headers.h"
#if defined(__aarch64__)

namespace ncakern {
namespace neon {
namespace {
constexpr int kVL = 4, kRegisters = 32;
#include "algorithm.inl"
}  // namespace

void fwd(const ForwardArgs& args) { rollout_fwd(args); }
void bwd(const BackwardArgs& args) { rollout_bwd(args); }
void moments(const MomentsArgs& args) { rollout_moments(args); }
bool supported() { return true; }
}  // namespace neon
}  // namespace ncakern
#endif
