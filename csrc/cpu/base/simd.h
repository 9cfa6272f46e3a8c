// Vec: one register of float32, with the same few operations in every instruction set.
//
// Included once per instruction set (isa.h). Everything lives in namespace marco_fast::MF_NS, so
// that no two instruction sets ever share a symbol. The scalar Vec has one lane and is the
// specification: a kernel written against Vec runs on any machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/convert.h"
#include "base/dtypes.h"
#include "base/isa.h"

#if MF_ISA != MF_ISA_SCALAR
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12: its own _mm512_undefined_*()
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace marco_fast {
namespace MF_NS {

inline constexpr float kInf = std::numeric_limits<float>::infinity();

// How many registers a block of products may use for its sums: 24 of 32, or 12 of 16. The others
// hold the operands.
inline constexpr int kAccumulators = MF_ISA >= MF_ISA_AVX512 ? 24 : 12;

#if MF_ISA == MF_ISA_SCALAR

struct Vec {
  static constexpr int kLanes = 1;
  float v;
};
inline Vec set1(float x) { return {x}; }
inline Vec load(const float* p) { return {*p}; }
inline Vec load(const bf16* p) { return {to_float(*p)}; }
inline Vec load(const f16* p) { return {to_float(*p)}; }
inline void store(float* p, Vec a) { *p = a.v; }
inline void store(bf16* p, Vec a) { from_float(a.v, p); }
inline void store(f16* p, Vec a) { from_float(a.v, p); }
inline Vec add(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec sub(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec mul(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec divide(Vec a, Vec b) { return {a.v / b.v}; }
// a where a > b, else b: a NaN in a gives b.
inline Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {std::fma(a.v, b.v, c.v)}; }
inline float reduce_add(Vec a) { return a.v; }
inline float reduce_max(Vec a) { return a.v; }
inline Vec round(Vec a) { return {std::nearbyint(a.v)}; }
// a * 2^n for an integral n in [-126, 127]
inline Vec scale2(Vec a, Vec n) {
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return {a.v * power};
}
// `then` where x >= limit, else 0 (0 for a NaN too)
inline Vec zero_below(Vec x, float limit, Vec then) { return {x.v >= limit ? then.v : 0.0f}; }
// Bit i is set where lane i of a is greater than b (never for a NaN).
inline uint32_t greater_mask(Vec a, Vec b) { return a.v > b.v; }
inline uint32_t equal_mask(Vec a, Vec b) { return a.v == b.v; }
inline uint32_t nan_mask(Vec a) { return a.v != a.v; }
// a - floor(a), in [0, 1]; a must be finite.
inline Vec fraction(Vec a) { return {a.v - std::floor(a.v)}; }
// a * 2^floor(y) for y in [-126, 127]; 0 where y is below -126, NaN where y is NaN.
inline Vec scale2_floor(Vec a, Vec y) {
  if (y.v >= -126.0f) return scale2(a, {std::floor(y.v)});
  return {y.v != y.v ? y.v : 0.0f};
}

#elif MF_ISA == MF_ISA_AVX2

struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;
};
inline Vec set1(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
inline Vec load(const f16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void store(bf16* p, Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline void store(f16* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec divide(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline float reduce_add(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float reduce_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec scale2(Vec a, Vec n) {
  const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)))};
}
inline Vec zero_below(Vec x, float limit, Vec then) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(limit), _CMP_GE_OQ), then.v)};
}
inline uint32_t greater_mask(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
}
inline uint32_t equal_mask(Vec a, Vec b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)));
}
inline uint32_t nan_mask(Vec a) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)));
}
inline Vec fraction(Vec a) {
  return {_mm256_sub_ps(a.v, _mm256_round_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC))};
}
inline Vec scale2_floor(Vec a, Vec y) {
  const Vec n = {_mm256_round_ps(y.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  const __m256 keep = _mm256_cmp_ps(y.v, _mm256_set1_ps(-126.0f), _CMP_NLT_UQ);
  return {_mm256_and_ps(keep, scale2(a, n).v)};
}

#else  // AVX-512 (F, BW, VL, DQ), with or without BF16

struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;
};
inline Vec set1(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline Vec load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store(bf16* p, Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet)));
}
inline void store(f16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec divide(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline float reduce_add(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec scale2(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline Vec zero_below(Vec x, float limit, Vec then) {
  const __mmask16 keep = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_GE_OQ);
  return {_mm512_maskz_mov_ps(keep, then.v)};
}
inline uint32_t greater_mask(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline uint32_t equal_mask(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline uint32_t nan_mask(Vec a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }

// Not by vreduceps: for a small negative a it gives the number below 1 where this rounds to 1.
inline Vec fraction(Vec a) {
  return {_mm512_sub_ps(a.v, _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC))};
}
inline Vec scale2_floor(Vec a, Vec y) {
  const __mmask16 keep = _mm512_cmp_ps_mask(y.v, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return {_mm512_maskz_scalef_ps(keep, a.v, y.v)};
}

#endif

}  // namespace MF_NS
}  // namespace marco_fast
