// Whatever every CPU of the platform has: SSE2 on x86-64.
#include "isa_headers.h"
#if !defined(__aarch64__)

namespace ncakern {
namespace scalar {
namespace {
constexpr int kVL = 4, kRegisters = 16;
#include "algorithm.inl"
}  // namespace

void fwd(const ForwardArgs& args) { rollout_fwd(args); }
void bwd(const BackwardArgs& args) { rollout_bwd(args); }
void moments(const MomentsArgs& args) { rollout_moments(args); }
bool supported() { return true; }
}  // namespace scalar
}  // namespace ncakern
#endif
