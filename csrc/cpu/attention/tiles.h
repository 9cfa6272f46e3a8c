// The sizes of attention's register tiles.
//
// Included once per instruction set, like simd.h. A query_head is one query and one head of its
// group. A word (simd_tile.h) is a float32 or, with kPairs, two bfloat16: of adjacent head
// dimensions in q and K, of adjacent tokens in the weights and V. The order of a query_head's sums
// depends on kPairs and its own tokens alone, never on the shape of a tile.
#pragma once

#include "attention/tree_attention.h"
#include "base/simd_tile.h"
#include "base/unroll.h"

namespace marco_fast {
namespace MF_NS {

inline constexpr int kLanes = Vec::kLanes;
inline constexpr int kWide = 3;  // registers per query_head in a tile
inline constexpr int kTileQueryHeads = kAccumulators / kWide;
// Steps (tokens, or pairs of tokens) of V that stay in L1 while every strip of columns passes.
inline constexpr int kStepsInL1 = MF_ISA == MF_ISA_AVX2 ? 32 : 64;
// Without packing: how many tokens a query_head is multiplied with at once, and how many tokens lie
// between what is multiplied and what is requested from memory.
inline constexpr int kDotTokens = 8;
inline constexpr int kTokensAhead = 32;

// Whether K is transposed before it is multiplied, so that tokens lie in lanes. With eight lanes it
// is cheaper to multiply K where it lies and add up the lanes, whatever the number of query_heads,
// unless heads are small.
inline bool packs_keys(int head_dim) { return MF_ISA != MF_ISA_AVX2 || head_dim <= 32; }

template <bool kPairs>
inline Vec dot_step(Vec x, Vec y, Vec acc) {
  return kPairs ? dot_step_pair(x, y, acc) : dot_step_float(x, y, acc);
}

// Calls f(first, Int<n>{}) for strips of 3 or 2 registers that cover [0, count), of 1 register only
// if count is 1.
template <class F>
inline void in_strips(int count, F&& f) {
  int j = 0;
  for (; count - j >= kWide && count - j != kWide + 1; j += kWide) f(j, Int<kWide>{});
  for (; count - j >= 2; j += 2) f(j, Int<2>{});
  if (j < count) f(j, Int<1>{});
}

}  // namespace MF_NS
}  // namespace marco_fast
