// Square tiles of registers: their transposition, sums of their lanes, and the dot-product step.
//
// Included once per instruction set, like simd.h. A tile is Vec::kLanes rows of words; a word is
// one float32 or, where pairs are used (kPairDot), two adjacent bfloat16.
#pragma once

#include "base/simd.h"

namespace marco_fast {
namespace MF_NS {

// Whether bfloat16 is multiplied in pairs; products and sums are float32 either way.
inline constexpr bool kPairDot = MF_ISA == MF_ISA_AVX512_BF16;

// acc + q * k; each word is a float32
inline Vec dot_step_float(Vec q, Vec k, Vec acc) { return fma(q, k, acc); }

#if MF_ISA == MF_ISA_AVX512_BF16
// acc + q.lo * k.lo + q.hi * k.hi; each word is a pair of bfloat16
inline Vec dot_step_pair(Vec q, Vec k, Vec acc) {
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)_mm512_castps_si512(q.v),
                           (__m512bh)_mm512_castps_si512(k.v))};
}
// Words whose lower half comes from `even` and whose upper half from `odd` (null: zero).
inline Vec interleave(const bf16* even, const bf16* odd) {
  const auto widen = [](const bf16* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  };
  __m512i words = widen(even);
  if (odd) words = _mm512_or_si512(words, _mm512_slli_epi32(widen(odd), 16));
  return {_mm512_castsi512_ps(words)};
}
inline Vec lower_half(Vec words) {
  return {_mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(words.v), _mm512_set1_epi32(0xffff)))};
}
#else  // never run: kPairDot is false
inline Vec dot_step_pair(Vec, Vec, Vec acc) { return acc; }
inline Vec interleave(const bf16* even, const bf16*) { return load(even); }
inline Vec lower_half(Vec words) { return words; }
#endif

// The first `count` words at p (half a register or a whole one), the rest zero. p may hold any
// type.
inline Vec load_words(const void* p, int count) {
#if MF_ISA >= MF_ISA_AVX512
  if (count < Vec::kLanes)
    return {_mm512_zextps256_ps512(_mm256_loadu_ps(static_cast<const float*>(p)))};
#endif
  (void)count;
  return load(static_cast<const float*>(p));
}

#if MF_ISA == MF_ISA_SCALAR

inline void transpose(Vec (&)[1]) {}

#elif MF_ISA == MF_ISA_AVX2

// x[i] lane j <-> x[j] lane i
inline void transpose(Vec (&x)[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(x[i].v, x[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    x[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    x[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

// Lane i of the result is the sum of the lanes of x[i], for 8 registers x, each added in one order.
inline Vec reduce_add_each(const Vec* x) {
  __m256 halves[4];  // lanes i and i + 4 of x[j] added, beside those of x[j + 4]
  for (int j = 0; j < 4; ++j)
    halves[j] = _mm256_add_ps(_mm256_permute2f128_ps(x[j].v, x[j + 4].v, 0x20),
                              _mm256_permute2f128_ps(x[j].v, x[j + 4].v, 0x31));
  const __m256 a = _mm256_add_ps(_mm256_unpacklo_ps(halves[0], halves[1]),
                                 _mm256_unpackhi_ps(halves[0], halves[1]));
  const __m256 b = _mm256_add_ps(_mm256_unpacklo_ps(halves[2], halves[3]),
                                 _mm256_unpackhi_ps(halves[2], halves[3]));
  return {_mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee))};
}

#else

// x[i] lane j <-> x[j] lane i
inline void transpose(Vec (&x)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  // b[4i + c] holds column 4l + c of rows 4i..4i+3 in its 128-bit lane l.
  for (int c = 0; c < 4; ++c) {
    const __m512 even01 = _mm512_shuffle_f32x4(b[c], b[c + 4], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(b[c], b[c + 4], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0xdd);
    x[c].v = _mm512_shuffle_f32x4(even01, even23, 0x88);
    x[c + 4].v = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    x[c + 8].v = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    x[c + 12].v = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}

#endif

// totals[i] has the bits of reduce_add(x[i]).
template <int N>
inline void reduce_add_all(const Vec (&x)[N], float (&totals)[N]) {
  int i = 0;
#if MF_ISA == MF_ISA_AVX2
  for (; i + 8 <= N; i += 8) store(totals + i, reduce_add_each(x + i));
#endif
  for (; i < N; ++i) totals[i] = reduce_add(x[i]);
}

}  // namespace MF_NS
}  // namespace marco_fast
