// Writes the K and V of new tokens into their slots of the paged cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/parallel.h"

namespace marco_fast {

// K or V: where it comes from and goes to. Strides in bytes; a head of a token is head_bytes
// contiguous bytes on either side.
struct AppendKv {
  const char* from;  // [tokens, num_kv_heads]
  int64_t from_stride_token, from_stride_head;
  char* cache;  // [num_pages, num_kv_heads, page_size]
  int64_t cache_stride_page, cache_stride_head;
};

// Heads [head_begin, head_end) of all tokens; slot -1 is skipped.
inline void append_heads(const AppendKv& a, const int64_t* slots, int64_t tokens, int64_t page_size,
                         int64_t head_bytes, int64_t head_begin, int64_t head_end) {
  for (int64_t t = 0; t < tokens; ++t) {
    if (slots[t] < 0) continue;
    char* page = a.cache + slots[t] / page_size * a.cache_stride_page;
    const int64_t offset = slots[t] % page_size * head_bytes;
    for (int64_t h = head_begin; h < head_end; ++h)
      std::memcpy(page + h * a.cache_stride_head + offset,
                  a.from + t * a.from_stride_token + h * a.from_stride_head, head_bytes);
  }
}

// Threads share the heads, so of several tokens with one slot the last one stays, on any number of
// threads.
inline void append_kv(const AppendKv& k, const AppendKv& v, const int64_t* slots, int64_t tokens,
                      int64_t num_kv_heads, int64_t page_size, int64_t head_bytes, int threads) {
  constexpr int64_t kMinBytesPerThread = 256 << 10;
  const int64_t useful = tokens * num_kv_heads * head_bytes / kMinBytesPerThread + 1;
  int64_t team = threads < num_kv_heads ? threads : num_kv_heads;
  team = team < useful ? team : useful;
  parallel(static_cast<int>(team), [&](int thread, int size) {
    const int64_t begin = num_kv_heads * thread / size;
    const int64_t end = num_kv_heads * (thread + 1) / size;
    append_heads(k, slots, tokens, page_size, head_bytes, begin, end);
    append_heads(v, slots, tokens, page_size, head_bytes, begin, end);
  });
}

}  // namespace marco_fast
