// Element types: from their code, and one element to and from float32.
//
// Included once per instruction set, like simd.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/dtypes.h"

namespace marco_fast {
namespace MF_NS {

// Calls f(T{}), where T is the element type of `dtype`.
template <class F>
inline auto with_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32: return f(float{});
    case Dtype::bf16: return f(bf16{});
    default: return f(f16{});
  }
}

// Exact where the target can hold the value, else rounded to the nearest, ties to even.
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline float to_float(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 31u, fraction = x.bits & 1023u;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {  // zero or subnormal: fraction * 2^-24 is exact in float32
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

inline void from_float(float x, float* out) { *out = x; }
inline void from_float(float x, bf16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}
inline void from_float(float x, f16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {
    out->bits = static_cast<uint16_t>(sign | 0x7e00u);
  } else if (bits >= 0x477ff000u) {  // rounds to 65520 or more
    out->bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (bits >= 0x38800000u) {
    bits -= 112u << 23;
    out->bits = static_cast<uint16_t>(sign | ((bits + 0xfffu + ((bits >> 13) & 1u)) >> 13));
  } else {  // subnormal: let float32 addition do the rounding at 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    const float shifted = magnitude + 0.5f;
    std::memcpy(&bits, &shifted, 4);
    out->bits = static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
}

}  // namespace MF_NS
}  // namespace marco_fast
