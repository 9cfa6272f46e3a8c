// Writes new K and V rows into their slots of the paged cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/parallel.h"

namespace marco_fast {

// Strides in bytes; a row of one head is row_bytes contiguous bytes on either side.
struct AppendKv {
  const char* from;  // [tokens, heads]
  int64_t from_stride_token, from_stride_head;
  char* cache;  // [pages, heads, page_size]
  int64_t cache_stride_page, cache_stride_head;
};

// The first token whose slot is neither -1 nor inside the cache, or -1.
inline int64_t find_bad_slot(const int64_t* slots, int64_t tokens, int64_t num_slots) {
  for (int64_t t = 0; t < tokens; ++t)
    if (slots[t] < -1 || slots[t] >= num_slots) return t;
  return -1;
}

inline void append_rows(const AppendKv& a, const int64_t* slots, int64_t tokens, int64_t page_size,
                        int64_t row_bytes, int64_t head_begin, int64_t head_end) {
  for (int64_t t = 0; t < tokens; ++t) {
    if (slots[t] < 0) continue;
    char* page = a.cache + slots[t] / page_size * a.cache_stride_page;
    const int64_t offset = slots[t] % page_size * row_bytes;
    for (int64_t h = head_begin; h < head_end; ++h)
      std::memcpy(page + h * a.cache_stride_head + offset,
                  a.from + t * a.from_stride_token + h * a.from_stride_head, row_bytes);
  }
}

// Threads share the heads, so that among equal slots the last token wins, whatever their number.
inline void append_kv(const AppendKv& k, const AppendKv& v, const int64_t* slots, int64_t tokens,
                      int64_t heads, int64_t page_size, int64_t row_bytes, int threads) {
  constexpr int64_t kMinBytesPerThread = 256 << 10;
  const int64_t useful = tokens * heads * row_bytes / kMinBytesPerThread + 1;
  int64_t team = threads < heads ? threads : heads;
  team = team < useful ? team : useful;
  parallel(static_cast<int>(team), [&](int thread, int size) {
    const int64_t begin = heads * thread / size, end = heads * (thread + 1) / size;
    append_rows(k, slots, tokens, page_size, row_bytes, begin, end);
    append_rows(v, slots, tokens, page_size, row_bytes, begin, end);
  });
}

}  // namespace marco_fast
