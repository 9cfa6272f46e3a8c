// Weights of a chunk's tokens from their scores, and the weighted sums of V.
//
// Included once per instruction set.
#pragma once

#include "attention/tiles.h"
#include "base/exp.h"
#include "base/prefetch.h"

namespace marco_fast {
namespace MF_NS {

// A query_head's running state: the largest score (not scaled), the sum of exponentials, and the
// weighted sums [head_dim].
struct State {
  float* m;
  float* s;
  float* acc;
};

// Turns a query_head's scores x into weights e^(scale * (x - m)), where m is its largest score so
// far; if m grows, what is in the state is scaled down. From `visible` on, to the end of the
// register, weights are 0. With kPairs the weights are rounded to bfloat16 in place; the sum is of
// the unrounded ones. A score that is NaN or +inf makes the sum NaN and m +inf, and every later
// chunk keeps them: a poisoned key is never dropped silently.
template <bool kPairs>
inline void exponentiate(float* x, int visible, float scale, const State& state, int head_dim) {
  const int padded = (visible + kLanes - 1) / kLanes * kLanes;
  for (int t = visible; t < padded; ++t) x[t] = -kInf;
  Vec largest = set1(-kInf);
  uint32_t nan = 0;
  for (int t = 0; t < padded; t += kLanes) {
    const Vec v = load(x + t);
    largest = max(v, largest);
    nan |= nan_mask(v);
  }
  float m = reduce_max(largest);
  if (nan || m == kInf) m = kInf;
  if (m > *state.m) {
    float factor[kLanes];  // 0 for the first chunk
    store(factor, exp_scaled_nonpositive(set1(*state.m - m), scale));
    *state.s *= factor[0];
    for (int i = 0; i < head_dim; i += kLanes)
      store(state.acc + i, mul(load(state.acc + i), set1(factor[0])));
    *state.m = m;
  }
  const Vec shift = set1(*state.m);
  Vec total = set1(0.0f);
  for (int t = 0; t < padded; t += kLanes) {
    const Vec p = exp_scaled_nonpositive(sub(load(x + t), shift), scale);
    if (kPairs)
      store(reinterpret_cast<bf16*>(x) + t, p);
    else
      store(x + t, p);
    total = add(total, p);
  }
  *state.s = m == kInf ? std::numeric_limits<float>::quiet_NaN() : *state.s + reduce_add(total);
}

// sums[h][column..] += sum over steps [begin, end) of p[h][i] * v[i][column..], for H query_heads
// and N registers of columns. kPrefetch: requests the step kTokensAhead further on.
template <bool kPairs, bool kPrefetch, class T, int H, int N>
inline void weigh_tiles(const float* p, int64_t p_stride, const T* const* v, int begin, int end,
                        int column, float* sums, int head_dim) {
  // The lines that begin in these columns. If there is only one, it is requested twice.
  constexpr int kLine = 64 / sizeof(T);
  const int line = (column + kLine - 1) / kLine * kLine;
  const int next = line + kLine < column + N * kLanes ? line + kLine : line;
  Vec acc[H][N];
#pragma GCC unroll 8
  for (int h = 0; h < H; ++h)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) acc[h][j] = load(sums + h * head_dim + column + j * kLanes);
  for (int i = begin; i < end; ++i) {
    if (kPrefetch) {
      prefetch(v[i + kTokensAhead] + line);
      if (sizeof(T) == 4) prefetch(v[i + kTokensAhead] + next);
    }
    Vec x[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) x[j] = load(v[i] + column + j * kLanes);
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
      const Vec weight = set1(p[h * p_stride + i]);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) acc[h][j] = dot_step<kPairs>(weight, x[j], acc[h][j]);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < H; ++h)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(sums + h * head_dim + column + j * kLanes, acc[h][j]);
}

// Adds steps [from, to) to the sums [query_heads][head_dim]. With kPrefetch, v has kTokensAhead
// further entries.
template <bool kPairs, bool kPrefetch, class T>
void weigh_block(int query_heads, const float* p, int64_t p_stride, const T* const* v, int from,
                 int to, float* sums, int head_dim) {
  for (int begin = from; begin < to; begin += kStepsInL1) {
    const int end = begin + kStepsInL1 < to ? begin + kStepsInL1 : to;
    in_strips(head_dim / kLanes, [&](int j, auto n) {
      in_even_blocks<kTileQueryHeads>(query_heads, [&](int h, auto count) {
        constexpr int H = decltype(count)::value, N = decltype(n)::value;
        const auto tiles = kPrefetch && h == 0 ? weigh_tiles<kPairs, true, T, H, N>
                                               : weigh_tiles<kPairs, false, T, H, N>;
        tiles(p + h * p_stride, p_stride, v, begin, end, j * kLanes, sums + h * head_dim, head_dim);
      });
    });
  }
}

// Adds the first token of a pair whose second token the query_head does not see.
inline void weigh_half_pair(const float* p, const float* pair, float* sums, int head_dim) {
  for (int i = 0; i < head_dim; i += kLanes)
    store(sums + i,
          dot_step_pair(lower_half(set1(*p)), lower_half(load(pair + i)), load(sums + i)));
}

}  // namespace MF_NS
}  // namespace marco_fast
