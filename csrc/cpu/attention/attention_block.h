// The steps of attention on one block of rows and one chunk of tokens, in registers.
//
// Included once per instruction set, like simd.h. Words (simd_tile.h) are float32, or with kPairs two
// bfloat16: of adjacent head dimensions in q and K, of adjacent tokens in the weights and V. The order
// of the sums of a row depends on kPairs and its own tokens alone, never on the shape of the block.
#pragma once

#include "base/simd_tile.h"
#include "attention/tree_attention.h"

namespace marco_fast {
namespace MF_NS {

inline constexpr int kLanes = Vec::kLanes;
inline constexpr int kWide = 3;  // registers of a row in a block of products
// Rows of such a block: 24 accumulators of 32 registers, or 12 of 16.
inline constexpr int kRows = MF_ISA >= MF_ISA_AVX512 ? 8 : 4;
// Rows of V that stay in L1 while every column strip passes.
inline constexpr int kTokenBlock = MF_ISA == MF_ISA_AVX2 ? 32 : 64;
// Whether K is transposed first, so that tokens lie in lanes. With eight lanes, adding them up takes less
// than that for all but small heads, however few the rows: K is then multiplied where it lies.
inline bool packs_keys(int head_dim) { return MF_ISA != MF_ISA_AVX2 || head_dim <= 32; }
// Tokens from the one that is multiplied to the one that is asked for from memory, where that is done.
inline constexpr int kAhead = 32;
inline constexpr int kDots = 8;  // products of a row and a token that are summed at once, without packing

template <bool kPairs>
inline Vec dot_step(Vec x, Vec y, Vec acc) {
  return kPairs ? dot_step_pair(x, y, acc) : dot_step_float(x, y, acc);
}

// Calls f(first, Int<n>) for registers 0..count in groups of 3 and 2, and 1 only if it is alone.
template <int N>
struct Int {
  static constexpr int value = N;
};
template <int N = kRows, class F>
inline void with_rows(int rows, F&& f) {
  if constexpr (N == 1) {
    f(Int<1>{});
  } else {
    if (rows == N) return f(Int<N>{});
    with_rows<N - 1>(rows, f);
  }
}
// Calls f(first, Int<n>) for `count` rows in blocks of about the same size.
template <class F>
inline void in_row_blocks(int count, F&& f) {
  const int blocks = (count + kRows - 1) / kRows;
  for (int i = 0; i < blocks; ++i) {
    const int begin = count * i / blocks;
    with_rows(count * (i + 1) / blocks - begin, [&](auto n) { f(begin, n); });
  }
}
template <class F>
inline void in_groups(int count, F&& f) {
  int j = 0;
  for (; count - j >= kWide && count - j != kWide + 1; j += kWide) f(j, Int<kWide>{});
  for (; count - j >= 2; j += 2) f(j, Int<2>{});
  if (j < count) f(j, Int<1>{});
}

// What will be read next, asked for from memory a few lines at a time between other work: all at once would hold
// up whatever is loaded meanwhile.
class Upcoming {
 public:
  static constexpr int kMostLines = 8;  // at a time

  void clear() { count_ = current_ = 0; }

  bool full() const { return count_ == kMostRuns; }

  void add(const void* at, int64_t bytes) {
    const int lines = static_cast<int>((bytes + 63) / 64);
    runs_[count_++] = {static_cast<const char*>(at), lines};
    lines_ += lines;
  }

  // ask() will be called so many times.
  void spread(int calls) {
    share_ = (lines_ + calls - 1) / calls;
    lines_ = 0;
  }

  void ask() {
    for (int i = 0; i < share_ && current_ < count_; ++i) {
      Run& run = runs_[current_];
      prefetch(run.at);
      run.at += 64;
      if (--run.lines == 0) ++current_;
    }
  }

 private:
  static constexpr int kMostRuns = 16;
  struct Run {
    const char* at;
    int lines;
  } runs_[kMostRuns];
  int count_ = 0, current_ = 0, lines_ = 0, share_ = 0;
};

// Asks for rows [begin, end) of a head, which are not always next to each other in memory.
template <class T>
inline void prefetch_rows(const T* const* rows, int begin, int end, int head_dim) {
  constexpr int kLine = 64 / sizeof(T);
  for (int t = begin; t < end; ++t)
    for (int i = 0; i < head_dim; i += kLine) __builtin_prefetch(rows[t] + i, 0, 2);
}

// K of `tokens` tokens, tokens in lanes: keys[tile][word][lane]; lanes beyond the last are zero. K and V of the
// first `asked` tokens are on their way already.
template <bool kPairs, class T>
void pack_keys(const T* const* k, const T* const* v, int tokens, int asked, int head_dim, float* keys,
               Upcoming& upcoming) {
  static const T zeros[kMaxHeadDim] = {};
  const int words = kPairs ? head_dim / 2 : head_dim;
  for (int begin = 0; begin < tokens; begin += kLanes, keys += words * kLanes) {
    const int left = tokens - begin;
    if (begin + kLanes >= asked) {
      prefetch_rows(k + begin, kLanes, left < 2 * kLanes ? left : 2 * kLanes, head_dim);
      prefetch_rows(v + begin, 0, left < kLanes ? left : kLanes, head_dim);
    }
    upcoming.ask();
    const T* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = i < left ? k[begin + i] : zeros;
    for (int word = 0; word < words; word += kLanes) {
      Vec x[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        x[i] = kPairs ? load_words(rows[i] + 2 * word, words - word) : load(rows[i] + word);
      transpose(x);
      // Half a tile of words may be the last. A loop to the count of them would become a call of memcpy.
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (i < kLanes / 2 || word + kLanes <= words) store(keys + (word + i) * kLanes, x[i]);
    }
  }
}

// Rows of a head one after the other, in float32.
template <class T>
void widen_rows(const T* const* rows, int tokens, int head_dim, float* to) {
  for (int t = 0; t < tokens; ++t)
    for (int i = 0; i < head_dim; i += kLanes) store(to + t * head_dim + i, load(rows[t] + i));
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

template <bool kPairs>
void score_packed(int rows, const float* q, int head_dim, const float* keys, int tokens,
                  float* scores, int64_t scores_stride) {
  const int words = kPairs ? head_dim / 2 : head_dim;
  in_row_blocks(rows, [&](int r, auto count) {
    in_groups((tokens + kLanes - 1) / kLanes, [&](int tile, auto n) {
      score_tiles<kPairs, decltype(count)::value, decltype(n)::value>(
          q + r * head_dim, head_dim, keys + tile * words * kLanes, words,
          scores + r * scores_stride + tile * kLanes, scores_stride);
    });
  });
}

#if MF_ISA == MF_ISA_AVX2
// Sums lane by lane of q[r] * k[t], for R rows and N tokens, at sums[r * kDots + t]. Of the tokens kAhead
// on, every `share`-th beginning with `first` is asked for; none where the share is 0.
template <class T, int R, int N>
inline __attribute__((always_inline)) void dot_lanes(const float* q, const T* const* k,
                                                     int head_dim, int first, int share,
                                                     Vec* sums) {
  constexpr int kLine = 64 / sizeof(T);
  Vec acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) acc[r][t] = set1(0.0f);
  for (int i = 0; i < head_dim; i += kLanes) {
    if (share && i % kLine == 0)
      for (int t = first; t < N; t += share) prefetch(k[t + kAhead] + i);
    Vec x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = load(q + r * head_dim + i);
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
      const Vec key = load(k[t] + i);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][t] = fma(x[r], key, acc[r][t]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) sums[r * kDots + t] = acc[r][t];
}

// scores[r][t] = q[r] . k[t], dimensions in lanes. k goes on for kDots + kAhead tokens after the last; scores
// of up to kDots - 1 of them are written too. Where kAsk, tokens are asked for ahead, a few lines at a
// time: many at once would hold up what is multiplied meanwhile.
template <bool kAsk, class T>
void score_rows(int rows, const float* q, int head_dim, const T* const* k, int tokens, float* scores,
                int64_t stride) {
  const int blocks = (rows + 2) / 3, share = kAsk ? blocks : 0;
  for (int begin = 0; begin < tokens; begin += kDots) {
    for (int i = 0; i < blocks; ++i) {
      const int row = rows * i / blocks;
      with_rows<3>(rows * (i + 1) / blocks - row, [&](auto count) {
        constexpr int R = decltype(count)::value;
        constexpr int N = R == 1 ? kDots : kDots / 2;  // with 8 to 12 sums under way no product waits
        Vec sums[R * kDots];
        for (int t = 0; t < kDots; t += N)
          dot_lanes<T, R, N>(q + row * head_dim, k + begin + t, head_dim, i, share, sums + t);
        for (int r = 0; r < R; ++r)
          store(scores + (row + r) * stride + begin, reduce_add_each(sums + r * kDots));
      });
    }
  }
}
#else  // never run: packs_keys() is true
template <bool kAsk, class T>
void score_rows(int, const float*, int, const T* const*, int, float*, int64_t) {}
#endif

// A row's running state: maximum (not scaled), sum of exponentials, weighted sums [head_dim].
struct State {
  float* m;
  float* s;
  float* acc;
};

// Scores of a row to weights e^(scale * (score - m)), 0 from `visible` to the end of its register, where m is
// the largest so far: what is in the state is scaled down to it where it grows. As words: with kPairs they
// are rounded to bfloat16 in place, the sum is of the unrounded ones.
// A score that is NaN or +inf makes the sum NaN and m +inf, which every later chunk keeps: a poisoned
// key is never dropped silently.
template <bool kPairs>
inline void exponentiate(float* x, int visible, float scale, const State& row, int head_dim) {
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
  if (m > *row.m) {
    float factor[kLanes];  // 0 for the first chunk
    store(factor, exp_scaled_nonpositive(set1(*row.m - m), scale));
    *row.s *= factor[0];
    for (int i = 0; i < head_dim; i += kLanes)
      store(row.acc + i, mul(load(row.acc + i), set1(factor[0])));
    *row.m = m;
  }
  const Vec shift = set1(*row.m);
  Vec total = set1(0.0f);
  for (int t = 0; t < padded; t += kLanes) {
    const Vec p = exp_scaled_nonpositive(sub(load(x + t), shift), scale);
    if (kPairs)
      store(reinterpret_cast<bf16*>(x) + t, p);
    else
      store(x + t, p);
    total = add(total, p);
  }
  *row.s = m == kInf ? std::numeric_limits<float>::quiet_NaN() : *row.s + reduce_add(total);
}

// sums[r][column..] += sum over steps [begin, end) of p[r][i] * v[i][column..], R rows, N registers.
// Where kAsk, the steps kAhead on are asked for.
template <bool kPairs, bool kAsk, class T, int R, int N>
inline void weigh_tiles(const float* p, int64_t p_stride, const T* const* v, int begin, int end,
                        int column, float* sums, int head_dim) {
  // Lines that begin in these columns; where there is but one it is asked for twice.
  constexpr int kLine = 64 / sizeof(T);
  const int line = (column + kLine - 1) / kLine * kLine;
  const int next = line + kLine < column + N * kLanes ? line + kLine : line;
  Vec acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) acc[r][j] = load(sums + r * head_dim + column + j * kLanes);
  for (int i = begin; i < end; ++i) {
    if (kAsk) {
      prefetch(v[i + kAhead] + line);
      if (sizeof(T) == 4) prefetch(v[i + kAhead] + next);
    }
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

// Adds steps [from, to) to the sums [rows][head_dim]. v goes on for kAhead steps.
template <bool kPairs, bool kAsk, class T>
void weigh_block(int rows, const float* p, int64_t p_stride, const T* const* v, int from, int to,
                 float* sums, int head_dim) {
  for (int begin = from; begin < to; begin += kTokenBlock) {
    const int end = begin + kTokenBlock < to ? begin + kTokenBlock : to;
    in_groups(head_dim / kLanes, [&](int j, auto n) {
      in_row_blocks(rows, [&](int r, auto count) {
        constexpr int R = decltype(count)::value, N = decltype(n)::value;
        const auto tiles = kAsk && r == 0 ? weigh_tiles<kPairs, true, T, R, N>
                                          : weigh_tiles<kPairs, false, T, R, N>;
        tiles(p + r * p_stride, p_stride, v, begin, end, j * kLanes, sums + r * head_dim, head_dim);
      });
    });
  }
}

// Adds the first token of a pair whose second one the row does not see.
inline void weigh_half_pair(const float* p, const float* pair, float* sums, int head_dim) {
  for (int i = 0; i < head_dim; i += kLanes)
    store(sums + i, dot_step_pair(lower_half(set1(*p)), lower_half(load(pair + i)), load(sums + i)));
}

}  // namespace MF_NS
}  // namespace marco_fast
