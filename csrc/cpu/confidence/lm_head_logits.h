// Products of hidden states and LM head weights: logits, computed tile by tile.
//
// Included once per instruction set. A logit has the same bits whatever tile computes it.
#pragma once

#include <cstring>
#include <type_traits>

#include "base/prefetch.h"
#include "base/simd_tile.h"
#include "base/unroll.h"
#include "confidence/lm_head_confidence.h"
#include "decoder/decoder_kernels.h"

namespace marco_fast {
namespace MF_NS {
namespace {

// A tile is the products of kTileRows rows of hidden and of the weights of kTileTokens tokens,
// summed at once, dimensions in lanes.
constexpr int kTileTokens = 4;
constexpr int kTileRows = kAccumulators / kTileTokens;
constexpr int kChainSteps = 128;         // products per lane in one chain; chains are added up
constexpr int64_t kWeightBytes = 16384;  // of weights that stay in L1 while every row passes

template <class T>
constexpr bool kPairs = kPairDot && std::is_same<T, bf16>::value;
template <class T>
constexpr int kStep = kPairs<T> ? 2 * Vec::kLanes : Vec::kLanes;  // weights per register

template <class T>
inline __attribute__((always_inline)) Vec load_weights(const T* p) {
  if constexpr (kPairs<T>) {
    return load(reinterpret_cast<const float*>(p));
  } else {
    return load(p);
  }
}

template <class T>
inline Vec dot(Vec x, Vec w, Vec acc) {
  return kPairs<T> ? dot_step_pair(x, w, acc) : fma(x, w, acc);
}

// Adds x[r] * w[n] lane by lane over `steps` registers: to sums[r * kTileTokens + n] if `resume`,
// else to zero. kPrefetch: one line of weights is requested per `share.every` lines.
template <class T, int R, int N, bool kPrefetch>
inline void multiply(const float* x, int64_t x_stride, const T* w, int64_t w_stride,
                     PrefetchShare share, int steps, bool resume, Vec* sums) {
  constexpr int kSteps = 64 / sizeof(T) / kStep<T>;  // per line
  Vec acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) acc[r][n] = set1(0.0f);
  int due = share.first * kSteps;
  for (int i = 0; i < steps; ++i) {
    if (kPrefetch && i == due) {
      for (int n = 0; n < N; ++n) prefetch(w + n * w_stride + share.ahead + i * kStep<T>);
      due += share.every * kSteps;
    }
    Vec row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = load(x + r * x_stride + i * Vec::kLanes);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Vec weights = load_weights(w + n * w_stride + i * kStep<T>);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][n] = dot<T>(row[r], weights, acc[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      Vec& sum = sums[r * kTileTokens + n];
      sum = resume ? add(sum, acc[r][n]) : acc[r][n];
    }
}

inline float round_to(Dtype dtype, float x) {
  if (dtype == Dtype::f32) return x;
  if (dtype == Dtype::bf16) {
    bf16 rounded;
    from_float(x, &rounded);
    return to_float(rounded);
  }
  f16 rounded;
  from_float(x, &rounded);
  return to_float(rounded);
}

// Logits of R rows from `row` on and of N tokens from `token` on, at logits[r * stride + n].
template <class T, int R, int N, bool kPrefetch>
void tile(const LMHeadArgs& args, const HeadRows& rows, int64_t row, int64_t token,
          PrefetchShare share, float* logits, int64_t stride) {
  const T* w = static_cast<const T*>(args.weight) + token * args.weight_stride;
  const float* x = rows.words + row * rows.stride;
  const int64_t whole = args.hidden_size / kStep<T>;
  Vec sums[R * kTileTokens];
  for (int i = 0; i < R * kTileTokens; ++i) sums[i] = set1(0.0f);
  for (int64_t at = 0; at < whole; at += kChainSteps) {
    const int steps = static_cast<int>(whole - at < kChainSteps ? whole - at : kChainSteps);
    multiply<T, R, N, kPrefetch>(x + at * Vec::kLanes, rows.stride, w + at * kStep<T>,
                                 args.weight_stride, share, steps, at > 0, sums);
  }
  if (const int64_t rest = args.hidden_size - whole * kStep<T>; rest > 0) {
    T last[N][kStep<T>] = {};  // what lies behind a row is not read
    for (int n = 0; n < N; ++n)
      std::memcpy(last[n], w + n * args.weight_stride + whole * kStep<T>, rest * sizeof(T));
    multiply<T, R, N, false>(x + whole * Vec::kLanes, rows.stride, last[0], kStep<T>, {}, 1, true,
                             sums);
  }
  float totals[R * kTileTokens];
  reduce_add_all(sums, totals);
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) {
      float z = totals[r * kTileTokens + n];
      if (args.bias) z += args.bias[token + n];
      logits[r * stride + n] = round_to(args.round_logits, z);
    }
}

// The same from quantised weights; `begin` is a multiple of a panel.
template <class T>
void quantized_logits(const LMHeadArgs& args, const HeadRows& rows, int64_t row_begin,
                      int64_t row_end, int64_t begin, int64_t end, float* logits, int64_t stride) {
  LinearArgs product{};
  product.a = rows.words + row_begin * rows.stride;
  product.dtype = kPairs<T> ? Dtype::bf16 : Dtype::f32;
  product.a_stride = kPairs<T> ? 2 * rows.stride : rows.stride;
  product.quantized = args.quantized;
  QuantizedRows some{};
  if (rows.int8_rows) {
    some = *rows.int8_rows;
    product.int8_rows = &some;
    some.codes += row_begin * kGroup, some.scales += row_begin, some.sums += 2 * row_begin;
  }
  product.rows = row_end - row_begin, product.in = args.hidden_size;
  product.out = end, product.result = logits - begin, product.result_stride = stride;
  linear(product, begin / kPanel, (end + kPanel - 1) / kPanel);
  for (int64_t row = 0; row < product.rows; ++row)
    for (int64_t v = 0; v < end - begin; ++v) {
      float& z = logits[row * stride + v];
      if (args.bias) z += args.bias[begin + v];
      z = round_to(args.round_logits, z);
    }
}

// Logits of rows [row_begin, row_end) and of tokens [begin, end); the first row's first token is
// at logits[0].
template <class T>
void logits_of(const LMHeadArgs& args, const HeadRows& rows, int64_t row_begin, int64_t row_end,
               int64_t begin, int64_t end, float* logits, int64_t stride) {
  if (args.quantized)
    return quantized_logits<T>(args, rows, row_begin, row_end, begin, end, logits, stride);
  const int64_t fit =
      kWeightBytes / static_cast<int64_t>(sizeof(T)) / args.hidden_size / kTileTokens * kTileTokens;
  const int64_t batch = fit < kTileTokens ? kTileTokens : fit;
  const int64_t count = row_end - row_begin, tiles = (count + kTileRows - 1) / kTileRows;
  for (int64_t from = begin; from < end; from += batch) {
    const int64_t to = from + batch < end ? from + batch : end;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = row_begin + count * t / tiles;
      const PrefetchShare share{batch * args.weight_stride, static_cast<int>(t),
                                static_cast<int>(tiles)};
      with_count<kTileRows>(
          static_cast<int>(row_begin + count * (t + 1) / tiles - row), [&](auto r) {
            constexpr int R = decltype(r)::value;
            float* out = logits + (row - row_begin) * stride;
            int64_t v = from;
            for (; v + kTileTokens <= to; v += kTileTokens)
              tile<T, R, kTileTokens, true>(args, rows, row, v, share, out + (v - begin), stride);
            for (; v < to; ++v)
              tile<T, R, 1, false>(args, rows, row, v, {}, out + (v - begin), stride);
          });
    }
  }
}

}  // namespace
}  // namespace MF_NS
}  // namespace marco_fast
