// float32 <-> the dtype a state is stored in. bfloat16 and float16 round to nearest even.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "nca.h"

namespace ncakern {

inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
}

#if defined(__aarch64__)
typedef __fp16 float16;  // GCC 12 has _Float16 in C++ on x86 only
#else
typedef _Float16 float16;
#endif

inline int64_t storage_bytes(Storage storage) { return storage == Storage::kFloat32 ? 4 : 2; }

inline void load_values(Storage storage, const void* from, int64_t offset, int n, float* to) {
  if (storage == Storage::kFloat32) {
    std::memcpy(to, static_cast<const float*>(from) + offset, sizeof(float) * n);
  } else if (storage == Storage::kBFloat16) {
    const uint16_t* p = static_cast<const uint16_t*>(from) + offset;
    for (int i = 0; i < n; ++i) to[i] = bf16_to_float(p[i]);
  } else {
    const float16* p = static_cast<const float16*>(from) + offset;
    for (int i = 0; i < n; ++i) to[i] = float(p[i]);
  }
}

inline void store_values(Storage storage, const float* from, int n, void* to, int64_t offset) {
  if (storage == Storage::kFloat32) {
    std::memcpy(static_cast<float*>(to) + offset, from, sizeof(float) * n);
  } else if (storage == Storage::kBFloat16) {
    uint16_t* p = static_cast<uint16_t*>(to) + offset;
    for (int i = 0; i < n; ++i) p[i] = float_to_bf16(from[i]);
  } else {
    float16* p = static_cast<float16*>(to) + offset;
    for (int i = 0; i < n; ++i) p[i] = float16(from[i]);
  }
}

// Rounds float32 values to what the storage can hold, in place.
inline void round_values(Storage storage, float* values, int n) {
  if (storage == Storage::kBFloat16) {
    for (int i = 0; i < n; ++i) values[i] = bf16_to_float(float_to_bf16(values[i]));
  } else if (storage == Storage::kFloat16) {
    for (int i = 0; i < n; ++i) values[i] = float(float16(values[i]));
  }
}

}  // namespace ncakern
