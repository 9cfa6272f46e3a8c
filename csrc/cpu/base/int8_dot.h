// Products of quantised weights and rows of 8 bits, as integers.
//
// Included once per instruction set, like simd.h. A quad is the codes of four adjacent inputs, one
// per byte of a 32-bit lane; the lanes are outputs.
#pragma once

#include "base/expand.h"

namespace marco_fast {
namespace MF_NS {

#if MF_ISA == MF_ISA_SCALAR

inline Words bytes_at(Words x, int shift, uint32_t mask) { return {x.v >> shift & mask}; }
inline Words join(Words low, Words high) { return {low.v | high.v << 4}; }

// The sum over `Quads` quads of the products of codes and of a row's numbers x [4 * Quads].
template <int Bits, int Quads>
inline Vec dot_quads(const Words* w, const int8_t* x) {
  int32_t sum = 0;
  for (int i = 0; i < 4 * Quads; ++i)
    sum += static_cast<int>(w[i / 4].v >> i % 4 * 8 & 255u) * x[i];
  return {static_cast<float>(sum)};
}

#else

#if MF_ISA == MF_ISA_AVX2
using Lanes = __m256i;
inline Lanes broadcast4(const int8_t* x) {
  int32_t word;
  std::memcpy(&word, x, 4);
  return _mm256_set1_epi32(word);
}
inline Lanes zeros() { return _mm256_setzero_si256(); }
inline Lanes multiply_pairs(Lanes w, Lanes x) { return _mm256_maddubs_epi16(w, x); }
inline Lanes add16(Lanes a, Lanes b) { return _mm256_add_epi16(a, b); }
inline Lanes add32(Lanes a, Lanes b) { return _mm256_add_epi32(a, b); }
inline Lanes sum_pairs(Lanes a, int16_t times) {
  return _mm256_madd_epi16(a, _mm256_set1_epi16(times));
}
inline Vec as_float(Lanes a) { return {_mm256_cvtepi32_ps(a)}; }
inline Words bytes_at(Words x, int shift, uint32_t mask) {
  return {_mm256_and_si256(_mm256_srli_epi32(x.v, shift), _mm256_set1_epi32(mask))};
}
inline Words join(Words low, Words high) {
  return {_mm256_or_si256(low.v, _mm256_slli_epi32(high.v, 4))};
}
#else
using Lanes = __m512i;
inline Lanes broadcast4(const int8_t* x) {
  int32_t word;
  std::memcpy(&word, x, 4);
  return _mm512_set1_epi32(word);
}
inline Lanes zeros() { return _mm512_setzero_si512(); }
inline Lanes multiply_pairs(Lanes w, Lanes x) { return _mm512_maddubs_epi16(w, x); }
inline Lanes add16(Lanes a, Lanes b) { return _mm512_add_epi16(a, b); }
inline Lanes add32(Lanes a, Lanes b) { return _mm512_add_epi32(a, b); }
inline Lanes sum_pairs(Lanes a, int16_t times) {
  return _mm512_madd_epi16(a, _mm512_set1_epi16(times));
}
inline Vec as_float(Lanes a) { return {_mm512_cvtepi32_ps(a)}; }
inline Words bytes_at(Words x, int shift, uint32_t mask) {
  return {_mm512_and_si512(_mm512_srli_epi32(x.v, shift), _mm512_set1_epi32(mask))};
}
inline Words join(Words low, Words high) {
  return {_mm512_or_si512(low.v, _mm512_slli_epi32(high.v, 4))};
}
#endif

#if MF_ISA == MF_ISA_AVX512_BF16  // a CPU with BF16 has VNNI, too
template <int Bits, int Quads>
inline __attribute__((always_inline)) Vec dot_quads(const Words* w, const int8_t* x) {
  Lanes even = zeros(), odd = zeros();  // two chains: each step waits for the last one of its own
#pragma GCC unroll 4
  for (int t = 0; t < Quads; t += 2) {
    even = _mm512_dpbusd_epi32(even, w[t].v, broadcast4(x + 4 * t));
    odd = _mm512_dpbusd_epi32(odd, w[t + 1].v, broadcast4(x + 4 * t + 4));
  }
  return as_float(add32(even, odd));
}
#else
// Products are added in pairs, in 16 bits. That holds 8 quads of codes below 16, or 2 of codes
// below 64; codes of 8 bits are multiplied half by half.
template <int Bits, int Quads>
inline __attribute__((always_inline)) Vec dot_quads(const Words* w, const int8_t* x) {
  if constexpr (Bits == 4) {
    Lanes sum = multiply_pairs(w[0].v, broadcast4(x));
#pragma GCC unroll 8
    for (int t = 1; t < Quads; ++t) sum = add16(sum, multiply_pairs(w[t].v, broadcast4(x + 4 * t)));
    return as_float(sum_pairs(sum, 1));
  } else if constexpr (Bits == 6) {
    Lanes sum = zeros();
#pragma GCC unroll 4
    for (int t = 0; t < Quads; t += 2)
      sum = add32(sum, sum_pairs(add16(multiply_pairs(w[t].v, broadcast4(x + 4 * t)),
                                       multiply_pairs(w[t + 1].v, broadcast4(x + 4 * t + 4))),
                                 1));
    return as_float(sum);
  } else {
    Lanes low = zeros(), high = zeros();
#pragma GCC unroll 8
    for (int t = 0; t < Quads; ++t) {
      const Lanes row = broadcast4(x + 4 * t);
      low = add16(low, multiply_pairs(bytes_at(w[t], 0, 0x0f0f0f0f).v, row));
      high = add16(high, multiply_pairs(bytes_at(w[t], 4, 0x0f0f0f0f).v, row));
    }
    return as_float(add32(sum_pairs(low, 1), sum_pairs(high, 16)));
  }
}
#endif
#endif

// The 8 quads of a group for one register of outputs.
template <int Bits>
inline __attribute__((always_inline)) void load_quads(const uint32_t* words, Words (&quads)[8]) {
  if constexpr (Bits == 8) {
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) quads[t] = load(words + t * kPanel);
  } else {
#pragma GCC unroll 4
    for (int w = 0; w < 4; ++w) {
      const Words x = load(words + w * kPanel);
      quads[2 * w] = bytes_at(x, 0, 0x0f0f0f0f), quads[2 * w + 1] = bytes_at(x, 4, 0x0f0f0f0f);
    }
    if constexpr (Bits == 6) {
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) {
        const Words high = load(words + (4 + t / 4) * kPanel);
        quads[t] = join(quads[t], bytes_at(high, t % 4 * 2, 0x03030303));
      }
    }
  }
}

// Row `row` of float32 or bfloat16 numbers x, rounded to 8 bits per group.
template <class T>
void quantize_row(const T* x, int64_t in, int64_t row, const QuantizedRows& to) {
  for (int64_t g = 0; g < in / kGroup; ++g, x += kGroup) {
    float numbers[kGroup];
    Vec most = set1(0.0f), finite = set1(0.0f);
    for (int i = 0; i < kGroup; i += Vec::kLanes) {
      const Vec each = load(x + i);
      store(numbers + i, each);
      most = max(max(each, sub(set1(0.0f), each)), most);
      finite = fma(each, set1(0.0f), finite);
    }
    const float largest = reduce_max(most), broken = reduce_add(finite);  // 0, or NaN
    // Numbers so small that their inverse is none become 0.
    const float inverse = largest > 1e-30f && broken == 0.0f ? 127.0f / largest : 0.0f;
    const int64_t at = g * to.rows + row;
    int8_t* codes = to.codes + at * kGroup;
    to.scales[at] = largest / 127.0f + broken;
    for (int half = 0; half < 2; ++half) {
      int32_t sum = 0;
      for (int i = half * 16; i < half * 16 + 16; ++i) {
        const float scaled = broken == 0.0f ? std::nearbyint(numbers[i] * inverse) : 0.0f;
        const int32_t code = static_cast<int32_t>(scaled);
        codes[i] = static_cast<int8_t>(code);
        sum += code;
      }
      to.sums[2 * at + half] = static_cast<float>(sum);
    }
  }
}

}  // namespace MF_NS
}  // namespace marco_fast
