// Tiles of the products with packed weights: some rows by a piece of a panel.
//
// Included once per instruction set, like simd.h.
#pragma once

#include "base/exp.h"
#include "base/prefetch.h"
#include "base/simd_tile.h"
#include "base/unroll.h"
#include "decoder/decoder_kernels.h"

namespace marco_fast {
namespace MF_NS {
namespace {

constexpr int kLanes = Vec::kLanes;
constexpr int kVecs = kPanel / kLanes;  // registers of a panel's outputs
constexpr int kHalf = kVecs / 2;
// A word is a float32, or two bfloat16 of adjacent inputs. A step multiplies one word of each row
// by a panel's kPanel words for it, which are 128 bytes. A tile is kTileRows rows, which share each
// load of weights.
constexpr int kTileRows = MF_ISA == MF_ISA_SCALAR ? 2 : kAccumulators / kVecs;
constexpr int kBatchRows = 8 * kTileRows;  // they pass over a piece of a panel while it is cached
// Steps per piece of a panel. A piece stays in L1 where tiles are small, in L2 where they are
// large; where bfloat16 is widened, the rows' part of it must stay there too.
constexpr int64_t kPieceSteps = MF_ISA == MF_ISA_AVX2 ? 128 : MF_ISA == MF_ISA_AVX512 ? 256 : 2048;
// Whether the tiles that pass over a piece request the next piece, each a share of it. Otherwise
// the first tile requests the weights of the step kStepsAhead of its own.
constexpr bool kSharePrefetch = MF_ISA == MF_ISA_AVX2;
constexpr int64_t kStepsAhead = 16;

// The two bfloat16 of each word as float32.
#if MF_ISA == MF_ISA_SCALAR
inline Vec low(Vec words) {
  uint32_t bits;
  std::memcpy(&bits, &words.v, 4);
  return {to_float(bf16{static_cast<uint16_t>(bits)})};
}
inline Vec high(Vec words) {
  uint32_t bits;
  std::memcpy(&bits, &words.v, 4);
  return {to_float(bf16{static_cast<uint16_t>(bits >> 16)})};
}
#elif MF_ISA == MF_ISA_AVX2
inline Vec low(Vec words) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(words.v), 16))};
}
inline Vec high(Vec words) {  // by shifts: a mask would take a register that multiply() needs
  const __m256i bits = _mm256_srli_epi32(_mm256_castps_si256(words.v), 16);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))};
}
#else
inline Vec low(Vec words) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words.v), 16))};
}
inline Vec high(Vec words) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words.v), upper))};
}
#endif

// One word in every lane.
inline Vec broadcast(const float* word) {
#if MF_ISA == MF_ISA_SCALAR
  return {*word};
#elif MF_ISA == MF_ISA_AVX2
  return {_mm256_broadcast_ss(word)};
#else
  return {_mm512_set1_ps(*word)};
#endif
}

// acc[r][j] += x[r] * w(j)
template <int R, class W>
inline __attribute__((always_inline)) void multiply_add(const Vec (&x)[R], W&& w,
                                                        Vec (&acc)[R][kVecs]) {
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) {
    const Vec each = w(j);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) acc[r][j] = fma(x[r], each, acc[r][j]);
  }
}

// sums [R, kPanel] += a [R, steps] * panel [steps, kPanel]. kPairs: the words of the panel are
// pairs of bfloat16; if they cannot be multiplied in pairs, a has two float32 per step. kPrefetch:
// whether the tile requests weights.
template <bool kPairs, bool kPrefetch, int R>
__attribute__((noinline)) void multiply(const float* a, int64_t stride, const float* panel,
                                        int64_t steps, PrefetchShare share, float* sums) {
  // A local array that no call takes: GCC keeps all of it in registers.
  Vec acc[R][kVecs];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) acc[r][j] = load(sums + r * kPanel + j * kLanes);
  const int64_t every = !kPrefetch ? steps : kSharePrefetch ? share.every : 1;
  const float* next = panel + share.ahead;
  for (int64_t begin = 0; begin < steps; begin += every, next += kPanel) {
    if (kPrefetch) {
      prefetch(next);
      prefetch(next + 16);
    }
    const int64_t end = steps - begin < every ? steps : begin + every;
    for (int64_t k = begin; k < end; ++k, panel += kPanel) {
      const auto word = [panel](int j) { return load(panel + j * kLanes); };
      Vec x[R];
      if constexpr (kPairs && kPairDot) {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + k);
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          const Vec w = word(j);
#pragma GCC unroll 12
          for (int r = 0; r < R; ++r) acc[r][j] = dot_step_pair(x[r], w, acc[r][j]);
        }
      } else if constexpr (kPairs) {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + 2 * k);
        multiply_add(x, [&](int j) { return low(word(j)); }, acc);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + 2 * k + 1);
        multiply_add(x, [&](int j) { return high(word(j)); }, acc);
      } else {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + k);
        multiply_add(x, word, acc);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) store(sums + r * kPanel + j * kLanes, acc[r][j]);
}

// bfloat16 to float32; size is even.
inline void widen(const bf16* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load(from + i));
  for (; i < size; ++i) to[i] = to_float(from[i]);
}

// e^x for |x| <= 88.
inline Vec exp_within(Vec x) {
  const Vec n = round(mul(x, set1(1.44269504f)));
  const Vec r = fma(n, set1(1.42860677e-6f), fma(n, set1(-0.693148613f), x));
  return scale2(exp_polynomial(r), n);
}

// g / (1 + e^-g). In float32 that is 0 below -88 and g above 88. NaN stays NaN.
inline Vec silu(Vec g) {
  const Vec low = max(set1(-88.0f), g), minus = sub(set1(0.0f), low);
  return divide(low, add(set1(1.0f), exp_within(max(set1(-88.0f), minus))));
}

inline void store_some(float* to, const float* from, int64_t count, bool accumulate) {
  for (int64_t i = 0; i < count; ++i) to[i] = accumulate ? to[i] + from[i] : from[i];
}

template <class T>
inline void store_gated(const LinearArgs& args, int64_t row, int64_t panel, const Vec* acc) {
  T* to = static_cast<T*>(args.gated) + row * args.gated_stride + panel * (kPanel / 2);
  for (int j = 0; j < kHalf; ++j) store(to + j * kLanes, mul(silu(acc[j]), acc[kHalf + j]));
}

inline void finish_row(const LinearArgs& args, int64_t row, int64_t panel, const float* sums) {
  const int64_t column = panel * kPanel;
  Vec acc[kVecs];
  for (int j = 0; j < kVecs; ++j) {
    acc[j] = load(sums + j * kLanes);
    if (args.bias) acc[j] = add(acc[j], load(args.bias + column + j * kLanes));
  }
  if (args.gated) {
    if (args.dtype == Dtype::bf16) return store_gated<bf16>(args, row, panel, acc);
    return store_gated<float>(args, row, panel, acc);
  }
  float* to = args.result + row * args.result_stride + column;
  if (args.out - column < kPanel) {
    float lanes[kPanel];
    for (int j = 0; j < kVecs; ++j) store(lanes + j * kLanes, acc[j]);
    return store_some(to, lanes, args.out - column, args.accumulate);
  }
  for (int j = 0; j < kVecs; ++j) {
    float* at = to + j * kLanes;
    store(at, args.accumulate ? add(load(at), acc[j]) : acc[j]);
  }
}

}  // namespace
}  // namespace MF_NS
}  // namespace marco_fast
