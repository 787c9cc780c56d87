// AMX tiles for bfloat16, with AVX-512 around them: not a variant of its own, but part of the forward pass of avx512.
#include "isa_headers.h"
#include "nca.h"
// Linux, as the tiles need a permission that only its own call gives; GCC, as clang knows no target pragma.
#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")

namespace ncakern {
namespace amx {
namespace {
constexpr int kVL = 16, kRegisters = 32;
// clang-format off
#include "simd/vectors.inl"
#include "simd/activation.inl"
#include "simd/cells.inl"
#include "amx/tiles.inl"
#include "forward/grid.inl"
#include "forward/states.inl"
#include "forward/fire.inl"
#include "amx/rollout.inl"
// clang-format on

bool has_instructions() {
  unsigned a, b, c, d, d7, a7;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d7) || !__get_cpuid_count(7, 1, &a7, &b, &c, &d)) return false;
  const bool has_tiles = d7 >> 24 & 1, has_tiles_bf16 = d7 >> 22 & 1, has_avx512_bf16 = a7 >> 5 & 1;
  return has_tiles && has_tiles_bf16 && has_avx512_bf16;
}

// Linux saves the tiles of a process only if it asks; once for all its threads, old and new.
bool get_permission() {
  constexpr int kRequestFeature = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestFeature, kTileData) == 0;
}
}  // namespace

void fwd(const ForwardArgs& args) { rollout_amx(args); }
bool supported() {
  static const bool is_supported = has_instructions() && get_permission();
  return is_supported;
}
}  // namespace amx
}  // namespace ncakern
#pragma GCC pop_options

#else
namespace ncakern {
namespace amx {
void fwd(const ForwardArgs&) {}
bool supported() { return false; }
}  // namespace amx
}  // namespace ncakern
#endif
