// AVX2 with FMA.
#include "isa_headers.h"
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace ncakern {
namespace avx2 {
namespace {
constexpr int kVL = 8, kRegisters = 16;
#include "algorithm.inl"
}  // namespace

void fwd(const ForwardArgs& args) { rollout_fwd(args); }
void bwd(const BackwardArgs& args) { rollout_bwd(args); }
void moments(const MomentsArgs& args) { rollout_moments(args); }
bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
}  // namespace avx2
}  // namespace ncakern
#pragma GCC pop_options
#endif
