// The steps of attention on one block of rows and one chunk of tokens, in registers.
//
// Included once per instruction set, like simd.h. Words (simd_tile.h) are float32, or with kPairs two
// bfloat16: of adjacent head dimensions in q and K, of adjacent tokens in the weights and V. The order
// of the sums of a row depends on kPairs and its own tokens alone, never on the shape of the block.
#pragma once

#include "simd_tile.h"

namespace marco_fast {
namespace MF_NS {

inline constexpr int kLanes = Vec::kLanes;
inline constexpr int kWide = 3;  // registers of a row in a block of products
inline constexpr int kTokenBlock = 64;  // rows of V that stay in L1 while every column strip passes

template <bool kPairs>
inline Vec dot_step(Vec x, Vec y, Vec acc) {
  return kPairs ? dot_step_pair(x, y, acc) : dot_step_float(x, y, acc);
}

// Calls f(first, Int<n>) for registers 0..count in groups of 3 and 2, and 1 only if it is alone.
template <int N>
struct Int {
  static constexpr int value = N;
};
template <class F>
inline void in_groups(int count, F&& f) {
  int j = 0;
  for (; count - j >= kWide && count - j != kWide + 1; j += kWide) f(j, Int<kWide>{});
  for (; count - j >= 2; j += 2) f(j, Int<2>{});
  if (j < count) f(j, Int<1>{});
}

// Asks for rows [begin, end) of a head, which are not always next to each other in memory.
template <class T>
inline void prefetch_rows(const T* const* rows, int begin, int end, int head_dim) {
  constexpr int kLine = 64 / sizeof(T);
  for (int t = begin; t < end; ++t)
    for (int i = 0; i < head_dim; i += kLine) __builtin_prefetch(rows[t] + i, 0, 2);
}

// K of `tokens` tokens, tokens in lanes: keys[tile][word][lane]; lanes beyond the last are zero.
template <bool kPairs, class T>
void pack_keys(const T* const* k, const T* const* v, int tokens, int head_dim, float* keys) {
  const int words = kPairs ? head_dim / 2 : head_dim;
  for (int begin = 0; begin < tokens; begin += kLanes, keys += words * kLanes) {
    const int ahead = begin + 2 * kLanes < tokens ? begin + 2 * kLanes : tokens;
    prefetch_rows(k, begin + kLanes < tokens ? begin + kLanes : tokens, ahead, head_dim);
    prefetch_rows(v, begin, begin + kLanes < tokens ? begin + kLanes : tokens, head_dim);
    for (int word = 0; word < words; word += kLanes) {
      Vec x[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        if (begin + i >= tokens)
          x[i] = set1(0.0f);
        else if (kPairs)
          x[i] = load_words(k[begin + i] + 2 * word, words - word);
        else
          x[i] = load(k[begin + i] + word);
      }
      transpose(x);
      const int count = words - word < kLanes ? words - word : kLanes;
      for (int i = 0; i < count; ++i) store(keys + (word + i) * kLanes, x[i]);
    }
  }
}

// V in float32, a row a token.
template <class T>
void widen_values(const T* const* v, int tokens, int head_dim, float* values) {
  for (int t = 0; t < tokens; ++t)
    for (int i = 0; i < head_dim; i += kLanes) store(values + t * head_dim + i, load(v[t] + i));
}

// V in pairs of tokens, a row of words a pair; a token without a partner is paired with zero.
inline void pair_values(const bf16* const* v, int tokens, int head_dim, float* values) {
  for (int t = 0; t < tokens; t += 2, values += head_dim)
    for (int i = 0; i < head_dim; i += kLanes)
      store(values + i, interleave(v[t] + i, t + 1 < tokens ? v[t + 1] + i : nullptr));
}

// scores[r][tile * kLanes + lane] = q[r] . k, for R rows and N tiles. Sums of a few products are added
// up: one chain of float32 over a head_dim of 128 would err twice as much as PyTorch's.
template <bool kPairs, int R, int N>
inline void score_tiles(const float* q, int64_t q_stride, const float* keys, int words,
                        float* scores, int64_t scores_stride) {
  constexpr int kStep = kPairs ? 64 : 16;
  for (int begin = 0; begin < words; begin += kStep) {
    const int end = begin + kStep < words ? begin + kStep : words;
    Vec acc[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) acc[r][j] = set1(0.0f);
    for (int i = begin; i < end; ++i) {
      Vec k[N];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) k[j] = load(keys + (j * words + i) * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec x = set1(q[r * q_stride + i]);
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) acc[r][j] = dot_step<kPairs>(x, k[j], acc[r][j]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        float* to = scores + r * scores_stride + j * kLanes;
        store(to, begin == 0 ? acc[r][j] : add(load(to), acc[r][j]));
      }
  }
}

template <bool kPairs, int R>
void score_block(const float* q, int head_dim, const float* keys, int tokens,
                 float* scores, int64_t scores_stride) {
  const int words = kPairs ? head_dim / 2 : head_dim;
  in_groups((tokens + kLanes - 1) / kLanes, [&](int tile, auto n) {
    score_tiles<kPairs, R, decltype(n)::value>(q, head_dim, keys + tile * words * kLanes, words,
                                               scores + tile * kLanes, scores_stride);
  });
}

// Scores of one row to weights e^(scale * (score - m)), 0 from `visible` to the end of its register; as words:
// with kPairs they are rounded to bfloat16 in place, `sum` is of the unrounded ones.
// A score that is NaN or +inf makes the sum NaN and m +inf, which every later merge keeps: a poisoned
// key is never dropped silently.
template <bool kPairs>
inline void exponentiate(float* x, int visible, float scale, float* m, float* sum) {
  const int padded = (visible + kLanes - 1) / kLanes * kLanes;
  for (int t = visible; t < padded; ++t) x[t] = -kInf;
  Vec largest = set1(-kInf);
  uint32_t nan = 0;
  for (int t = 0; t < padded; t += kLanes) {
    const Vec v = load(x + t);
    largest = max(v, largest);
    nan |= nan_mask(v);
  }
  *m = reduce_max(largest);
  if (nan || *m == kInf) *m = kInf;
  const Vec shift = set1(*m);
  Vec total = set1(0.0f);
  for (int t = 0; t < padded; t += kLanes) {
    const Vec p = exp_scaled_nonpositive(sub(load(x + t), shift), scale);
    if (kPairs)
      store(reinterpret_cast<bf16*>(x) + t, p);
    else
      store(x + t, p);
    total = add(total, p);
  }
  *sum = *m == kInf ? std::numeric_limits<float>::quiet_NaN() : reduce_add(total);
}

// sums[r][column..] (+)= sum over steps [begin, end) of p[r][i] * v[i][column..], R rows, N registers
template <bool kPairs, class T, int R, int N>
inline void weigh_tiles(const float* p, int64_t p_stride, const T* const* v, int begin, int end,
                        int column, bool resume, float* sums, int head_dim) {
  Vec acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j)
      acc[r][j] = resume ? load(sums + r * head_dim + column + j * kLanes) : set1(0.0f);
  for (int i = begin; i < end; ++i) {
    Vec x[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) x[j] = load(v[i] + column + j * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec weight = set1(p[r * p_stride + i]);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) acc[r][j] = dot_step<kPairs>(weight, x[j], acc[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(sums + r * head_dim + column + j * kLanes, acc[r][j]);
}

// Adds steps [from, to) to the sums; without `resume` the sums start at zero.
template <bool kPairs, class T, int R>
void weigh_block(const float* p, int64_t p_stride, const T* const* v, int from, int to, bool resume,
                 float* sums, int head_dim) {
  for (int begin = from; begin < to || !resume; begin += kTokenBlock, resume = true) {
    const int end = begin + kTokenBlock < to ? begin + kTokenBlock : to;
    in_groups(head_dim / kLanes, [&](int j, auto n) {
      weigh_tiles<kPairs, T, R, decltype(n)::value>(p, p_stride, v, begin, end, j * kLanes, resume,
                                                    sums, head_dim);
    });
  }
}

// Adds the first token of a pair whose second one the row does not see.
inline void weigh_half_pair(const float* p, const float* pair, float* sums, int head_dim) {
  for (int i = 0; i < head_dim; i += kLanes)
    store(sums + i, dot_step_pair(lower_half(set1(*p)), lower_half(load(pair + i)), load(sums + i)));
}

// A row's running state, or several rows': maximum (not scaled), sum of exponentials, weighted sums [rows][dim].
struct States {
  float* m;
  float* s;
  float* acc;
};

// Joins a chunk's (m, s, sums) to each row's state. An empty side leaves the other's bits.
inline void merge_block(int rows, const float* m, const float* s, const float* sums, float scale,
                        const States& to, int head_dim) {
  alignas(64) float factor[16] = {};
  for (int r = 0; r < rows; ++r) factor[r] = -std::fabs(to.m[r] - m[r]);
  for (int r = 0; r < rows; r += kLanes) store(factor + r, exp_scaled_nonpositive(load(factor + r), scale));
  for (int r = 0; r < rows; ++r, sums += head_dim) {
    if (m[r] == -kInf) continue;
    float* acc = to.acc + static_cast<int64_t>(r) * head_dim;
    if (to.m[r] == -kInf) {
      to.m[r] = m[r];
      to.s[r] = s[r];
      std::memcpy(acc, sums, sizeof(float) * head_dim);
      continue;
    }
    const bool grows = m[r] > to.m[r];
    const float old_factor = grows ? factor[r] : 1.0f, new_factor = grows ? 1.0f : factor[r];
    if (grows) to.m[r] = m[r];
    to.s[r] = to.s[r] * old_factor + s[r] * new_factor;
    const Vec a = set1(old_factor), b = set1(new_factor);
    for (int i = 0; i < head_dim; i += kLanes)
      store(acc + i, fma(load(acc + i), a, mul(load(sums + i), b)));
  }
}

}  // namespace MF_NS
}  // namespace marco_fast
