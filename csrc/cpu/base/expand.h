// Quantised weights as the products read them: pieces of a panel, expanded to float32 or to pairs
// of bfloat16.
//
// Included once per instruction set, like simd.h.
#pragma once

#include "base/prefetch.h"
#include "base/quantized.h"
#include "base/simd_tile.h"

namespace marco_fast {
namespace MF_NS {

// 32-bit words, one per lane; and the bits [shift, shift + 2, 4 or 8) of each as a number.
#if MF_ISA == MF_ISA_SCALAR

struct Words {
  uint32_t v;
};
inline Words load(const uint32_t* p) { return {*p}; }
inline Vec load_int8(const int8_t* p) { return {static_cast<float>(*p)}; }
inline Vec nibble(Words x, int shift) { return {static_cast<float>(x.v >> shift & 15u)}; }
inline Vec byte(Words x, int shift) { return {static_cast<float>(x.v >> shift & 255u)}; }
inline Vec nibble_and_high(Words low, int shift, Words high, int high_shift) {
  return {static_cast<float>((low.v >> shift & 15u) | (high.v >> high_shift & 3u) << 4)};
}

#elif MF_ISA == MF_ISA_AVX2

struct Words {
  __m256i v;
};
inline Words load(const uint32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline Vec load_int8(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}
inline __m256i bits_of(Words x, int shift, int mask) {
  return _mm256_and_si256(_mm256_srli_epi32(x.v, shift), _mm256_set1_epi32(mask));
}
inline Vec nibble(Words x, int shift) { return {_mm256_cvtepi32_ps(bits_of(x, shift, 15))}; }
inline Vec byte(Words x, int shift) { return {_mm256_cvtepi32_ps(bits_of(x, shift, 255))}; }
inline Vec nibble_and_high(Words low, int shift, Words high, int high_shift) {
  const __m256i upper = _mm256_slli_epi32(bits_of(high, high_shift, 3), 4);
  return {_mm256_cvtepi32_ps(_mm256_or_si256(bits_of(low, shift, 15), upper))};
}

#else

struct Words {
  __m512i v;
};
inline Words load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline Vec load_int8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
inline __m512i bits_of(Words x, int shift, int mask) {
  return _mm512_and_si512(_mm512_srli_epi32(x.v, shift), _mm512_set1_epi32(mask));
}
inline Vec nibble(Words x, int shift) {  // the permutation reads the lowest 4 bits alone
  const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(x.v, shift), numbers)};
}
inline Vec byte(Words x, int shift) { return {_mm512_cvtepi32_ps(bits_of(x, shift, 255))}; }
inline Vec nibble_and_high(Words low, int shift, Words high, int high_shift) {
  const __m512i upper = _mm512_slli_epi32(bits_of(high, high_shift, 3), 4);
  return {_mm512_cvtepi32_ps(_mm512_or_si512(bits_of(low, shift, 15), upper))};
}

#endif

#if MF_ISA == MF_ISA_AVX512_BF16
// Words of pairs of bfloat16: the lower halves from `even`, the upper ones from `odd`.
inline void store_pairs(float* to, Vec even, Vec odd) {
  const __m512i order = _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a,
                                         0x190009, 0x180008, 0x170007, 0x160006, 0x150005, 0x140004,
                                         0x130003, 0x120002, 0x110001, 0x100000);
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, halves));
}
#else
inline void store_pairs(float*, Vec, Vec) {}  // never run: kPairDot is false
#endif

// Stores the weights of two adjacent inputs; `to` is where those of the first begin.
template <bool kPairs>
inline __attribute__((always_inline)) void store_inputs(float* to, int input, Vec even, Vec odd) {
  if constexpr (kPairs) {
    store_pairs(to + input / 2 * kPanel, even, odd);
  } else {
    store(to + input * kPanel, even);
    store(to + (input + 1) * kPanel, odd);
  }
}

// The factor and the summand of the codes of some lanes, for the group that begins at `input`.
struct Affine {
  Vec scale, offset;
  Vec operator()(Vec code) const { return fma(code, scale, offset); }
};
inline Affine affine_at(const QuantizedPanels& q, int64_t panel, int64_t input, int lane) {
  const int64_t block = (panel * (q.in / q.block) + input / q.block) * kPanel + lane;
  const int64_t group = (panel * (q.in / q.group) + input / q.group) * kPanel + lane;
  Vec scale = load(q.scale + block);
  if (q.mult) scale = mul(scale, load_int8(q.mult + group));
  if (!q.offset) return {scale, mul(scale, set1(static_cast<float>(-q.zero)))};
  Vec offset = load(q.offset + block);
  if (q.offset_mult) offset = mul(offset, load_int8(q.offset_mult + group));
  return {scale, offset};
}

// Codes [first, first + 16) of a group for one register of outputs: f(input, even, odd) for each
// two adjacent ones.
template <int Bits, class F>
inline __attribute__((always_inline)) void codes_of(const uint32_t* words, int first, F&& f) {
  if constexpr (Bits == 8) {
#pragma GCC unroll 4
    for (int w = first / 4; w < first / 4 + 4; ++w) {
      const Words x = load(words + w * kPanel);
      f(4 * w, byte(x, 0), byte(x, 8));
      f(4 * w + 2, byte(x, 16), byte(x, 24));
    }
  } else {
    const Words high = Bits == 6 ? load(words + (4 + first / 16) * kPanel) : Words{};
#pragma GCC unroll 2
    for (int w = 0; w < 2; ++w) {
      const Words x = load(words + (first / 8 + w) * kPanel);
#pragma GCC unroll 4
      for (int n = 0; n < 8; n += 2) {
        const int at = first + 8 * w + n;
        if constexpr (Bits == 6) {
          f(at, nibble_and_high(x, nibble_shift(at), high, high_shift(at)),
            nibble_and_high(x, nibble_shift(at + 1), high, high_shift(at + 1)));
        } else {
          f(at, nibble(x, nibble_shift(at)), nibble(x, nibble_shift(at + 1)));
        }
      }
    }
  }
}

// Requests the words of a group some lines ahead.
template <int Bits>
inline void prefetch_group(const uint32_t* words) {
  constexpr int kLinesAhead = 16;
#pragma GCC unroll 16
  for (int i = 0; i < 2 * Bits; ++i) prefetch(words + (kLinesAhead + i) * 16);
}

template <int Bits, bool kPairs>
void expand_bits(const QuantizedPanels& q, int64_t panel, int64_t begin, int64_t count, float* to) {
  const uint32_t* words = q.codes + (panel * q.in + begin) / kGroup * Bits * kPanel;
  for (int64_t at = 0; at < count;
       at += kGroup, words += Bits * kPanel, to += kGroup * kPanel / (1 + kPairs)) {
    prefetch_group<Bits>(words);
    for (int lane = 0; lane < kPanel; lane += Vec::kLanes) {
      Affine weight = affine_at(q, panel, begin + at, lane);
      const auto write = [&](int input, Vec even, Vec odd) {
        store_inputs<kPairs>(to + lane, input, weight(even), weight(odd));
      };
      codes_of<Bits>(words + lane, 0, write);
      if (q.group < kGroup) weight = affine_at(q, panel, begin + at + 16, lane);
      codes_of<Bits>(words + lane, 16, write);
    }
  }
}

// Weights of a panel for inputs [begin, begin + count), multiples of kGroup: as float32
// [count, kPanel], or as pairs of bfloat16 [count / 2, kPanel].
template <bool kPairs>
void expand(const QuantizedPanels& q, int64_t panel, int64_t begin, int64_t count, float* to) {
  switch (q.bits) {
    case 4: return expand_bits<4, kPairs>(q, panel, begin, count, to);
    case 6: return expand_bits<6, kPairs>(q, panel, begin, count, to);
    default: return expand_bits<8, kPairs>(q, panel, begin, count, to);
  }
}

}  // namespace MF_NS
}  // namespace marco_fast
