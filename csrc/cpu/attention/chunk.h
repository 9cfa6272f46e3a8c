// One chunk of a segment: where its tokens lie, and which queries see them.
//
// Included once per instruction set.
#pragma once

#include "attention/tiles.h"

namespace marco_fast {
namespace MF_NS {
namespace {

constexpr int kMaxChunkTokens = cpu_chunk_tokens(16);

// Where K and V begin: of each token of a chunk, then of the tokens that are requested ahead.
template <class T>
struct Chunk {
  const T* k[kMaxChunkTokens + kDotTokens + kTokensAhead];
  const T* v[kMaxChunkTokens + kDotTokens + kTokensAhead];
};

// Fills in `tokens` tokens. Behind the segment's last token, that token's address is repeated.
template <class T>
void locate(const TreeAttentionArgs& a, int head, int segment, int64_t begin, int tokens,
            Chunk<T>* c) {
  const int32_t* pages = a.page_ids + a.page_begin[segment];
  const T* k = static_cast<const T*>(a.k) + head * a.k_stride_head;
  const T* v = static_cast<const T*>(a.v) + head * a.v_stride_head;
  const int64_t left = a.segment_lens[segment] - begin;
  int64_t page = begin / a.page_size, offset = begin % a.page_size;
  for (int t = 0; t < tokens; ++t) {
    if (t >= left) {
      c->k[t] = c->k[t - 1];
      c->v[t] = c->v[t - 1];
      continue;
    }
    c->k[t] = k + pages[page] * a.k_stride_page + offset * a.head_dim;
    c->v[t] = v + pages[page] * a.v_stride_page + offset * a.head_dim;
    if (++offset == a.page_size) {
      offset = 0;
      ++page;
    }
  }
}

// A chunk of a segment, and how many of its tokens each query sees.
struct Readers {
  const TreeAttentionArgs& args;
  int segment;
  int64_t chunk_begin;
  int chunk_tokens;

  int visible(int query) const {
    if (query >= args.own_end[segment]) return chunk_tokens;
    const int64_t seen = args.query_lens[query] - chunk_begin;
    return seen < chunk_tokens ? static_cast<int>(seen < 0 ? 0 : seen) : chunk_tokens;
  }
};

}  // namespace
}  // namespace MF_NS
}  // namespace marco_fast
