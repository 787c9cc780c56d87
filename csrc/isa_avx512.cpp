// AVX-512: F, BW, DQ, VL.
#include "isa_headers.h"
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

namespace ncakern {
namespace avx512 {
namespace {
constexpr int kVL = 16, kRegisters = 32;
#include "algorithm.inl"
}  // namespace

void fwd(const ForwardArgs& args) { rollout_fwd(args); }
void bwd(const BackwardArgs& args) { rollout_bwd(args); }
void moments(const MomentsArgs& args) { rollout_moments(args); }
bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
}  // namespace avx512
}  // namespace ncakern
#pragma GCC pop_options
#endif
