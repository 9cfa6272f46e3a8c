// K and V of a chunk, laid out for the products.
//
// Included once per instruction set.
#pragma once

#include "attention/tiles.h"
#include "base/prefetch.h"

namespace marco_fast {
namespace MF_NS {

// Requests K or V of tokens [begin, end), which are not always next to each other in memory.
template <class T>
inline void prefetch_tokens(const T* const* tokens, int begin, int end, int head_dim) {
  constexpr int kLine = 64 / sizeof(T);
  for (int t = begin; t < end; ++t)
    for (int i = 0; i < head_dim; i += kLine) __builtin_prefetch(tokens[t] + i, 0, 2);
}

// K of `tokens` tokens, with tokens in lanes: keys[tile][word][lane]; lanes behind the last token
// are zero. K and V of the first `requested` tokens have been requested before.
template <bool kPairs, class T>
void pack_keys(const T* const* k, const T* const* v, int tokens, int requested, int head_dim,
               float* keys, Upcoming& upcoming) {
  static const T zeros[kMaxHeadDim] = {};
  const int words = kPairs ? head_dim / 2 : head_dim;
  for (int begin = 0; begin < tokens; begin += kLanes, keys += words * kLanes) {
    const int left = tokens - begin;
    if (begin + kLanes >= requested) {
      prefetch_tokens(k + begin, kLanes, left < 2 * kLanes ? left : 2 * kLanes, head_dim);
      prefetch_tokens(v + begin, 0, left < kLanes ? left : kLanes, head_dim);
    }
    upcoming.request();
    const T* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = i < left ? k[begin + i] : zeros;
    for (int word = 0; word < words; word += kLanes) {
      Vec x[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        x[i] = kPairs ? load_words(rows[i] + 2 * word, words - word) : load(rows[i] + word);
      transpose(x);
      // The last tile may hold half as many words. The compiler would turn a loop over their number
      // into a call of memcpy.
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (i < kLanes / 2 || word + kLanes <= words) store(keys + (word + i) * kLanes, x[i]);
    }
  }
}

// K or V of the tokens, one after the other, in float32.
template <class T>
void widen_tokens(const T* const* from, int tokens, int head_dim, float* to) {
  for (int t = 0; t < tokens; ++t)
    for (int i = 0; i < head_dim; i += kLanes) store(to + t * head_dim + i, load(from[t] + i));
}

// V in pairs of tokens: values[pair][word]. A last token without a partner is paired with zero.
inline void pair_values(const bf16* const* v, int tokens, int head_dim, float* values) {
  for (int t = 0; t < tokens; t += 2, values += head_dim)
    for (int i = 0; i < head_dim; i += kLanes)
      store(values + i, interleave(v[t] + i, t + 1 < tokens ? v[t + 1] + i : nullptr));
}

}  // namespace MF_NS
}  // namespace marco_fast
