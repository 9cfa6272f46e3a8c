// The scores q . k of query_heads and the tokens of a chunk.
//
// Included once per instruction set.
#pragma once

#include "attention/tiles.h"
#include "base/prefetch.h"

namespace marco_fast {
namespace MF_NS {

// scores[h][tile * kLanes + lane] = q[h] . k, for H query_heads and N tiles. Short sums are added
// up, because one float32 chain over a head_dim of 128 would have twice the error of PyTorch.
template <bool kPairs, int H, int N>
inline void score_tiles(const float* q, int64_t q_stride, const float* keys, int words,
                        float* scores, int64_t scores_stride) {
  constexpr int kStep = kPairs ? 64 : 16;
  for (int begin = 0; begin < words; begin += kStep) {
    const int end = begin + kStep < words ? begin + kStep : words;
    Vec acc[H][N];
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) acc[h][j] = set1(0.0f);
    for (int i = begin; i < end; ++i) {
      Vec k[N];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) k[j] = load(keys + (j * words + i) * kLanes);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const Vec x = set1(q[h * q_stride + i]);
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) acc[h][j] = dot_step<kPairs>(x, k[j], acc[h][j]);
      }
    }
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        float* to = scores + h * scores_stride + j * kLanes;
        store(to, begin == 0 ? acc[h][j] : add(load(to), acc[h][j]));
      }
  }
}

template <bool kPairs>
void score_packed(int query_heads, const float* q, int head_dim, const float* keys, int tokens,
                  float* scores, int64_t scores_stride) {
  const int words = kPairs ? head_dim / 2 : head_dim;
  in_even_blocks<kTileQueryHeads>(query_heads, [&](int h, auto count) {
    in_strips((tokens + kLanes - 1) / kLanes, [&](int tile, auto n) {
      score_tiles<kPairs, decltype(count)::value, decltype(n)::value>(
          q + h * head_dim, head_dim, keys + tile * words * kLanes, words,
          scores + h * scores_stride + tile * kLanes, scores_stride);
    });
  });
}

#if MF_ISA == MF_ISA_AVX2
// Sums lane by lane of q[h] * k[t], for H query_heads and N tokens, at sums[h * kDotTokens + t].
// Of the tokens kTokensAhead further on, requests those numbered `first`, first + every, ... (none
// if every is 0).
template <class T, int H, int N>
inline __attribute__((always_inline)) void dot_lanes(const float* q, const T* const* k,
                                                     int head_dim, int first, int every,
                                                     Vec* sums) {
  constexpr int kLine = 64 / sizeof(T);
  Vec acc[H][N];
#pragma GCC unroll 8
  for (int h = 0; h < H; ++h)
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) acc[h][t] = set1(0.0f);
  for (int i = 0; i < head_dim; i += kLanes) {
    if (every && i % kLine == 0)
      for (int t = first; t < N; t += every) prefetch(k[t + kTokensAhead] + i);
    Vec x[H];
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) x[h] = load(q + h * head_dim + i);
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
      const Vec key = load(k[t] + i);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) acc[h][t] = fma(x[h], key, acc[h][t]);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < H; ++h)
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) sums[h * kDotTokens + t] = acc[h][t];
}

// scores[h][t] = q[h] . k[t], with dimensions in lanes. Behind the last token, k has kDotTokens +
// kTokensAhead further entries, and scores of up to kDotTokens - 1 of them are written too.
// kPrefetch: tokens are requested ahead, a few lines at a time, because many requests at once would
// hold up the loads of what is multiplied meanwhile.
template <bool kPrefetch, class T>
void score_unpacked(int query_heads, const float* q, int head_dim, const T* const* k, int tokens,
                    float* scores, int64_t stride) {
  const int blocks = (query_heads + 2) / 3, every = kPrefetch ? blocks : 0;
  for (int begin = 0; begin < tokens; begin += kDotTokens) {
    for (int i = 0; i < blocks; ++i) {
      const int begin_head = query_heads * i / blocks;
      with_count<3>(query_heads * (i + 1) / blocks - begin_head, [&](auto count) {
        constexpr int H = decltype(count)::value;
        // 8 to 12 sums at once: no product waits for another.
        constexpr int N = H == 1 ? kDotTokens : kDotTokens / 2;
        Vec sums[H * kDotTokens];
        for (int t = 0; t < kDotTokens; t += N)
          dot_lanes<T, H, N>(q + begin_head * head_dim, k + begin + t, head_dim, i, every,
                             sums + t);
        for (int h = 0; h < H; ++h)
          store(scores + (begin_head + h) * stride + begin, reduce_add_each(sums + h * kDotTokens));
      });
    }
  }
}
#else  // never run: packs_keys() is true
template <bool kPrefetch, class T>
void score_unpacked(int, const float*, int, const T* const*, int, float*, int64_t) {}
#endif

}  // namespace MF_NS
}  // namespace marco_fast
