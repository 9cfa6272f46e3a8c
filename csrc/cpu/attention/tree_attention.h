// Attention of many queries over a forest of paged KV segments, each segment read once for all of them.
//
// Work is cut into units: one KV head and an interval of depth-first queries, whose rows (query, head
// in group) keep a running state (m, s, acc). A unit walks the segments from the roots down; a segment
// is cut into chunks at fixed token positions, and each chunk joins the state of every row that sees it
// by one formula. So a row's bits depend on its path alone.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/dtypes.h"
#include "base/isa.h"

namespace marco_fast {

struct TreeAttentionArgs {
  // Inputs; strides in elements, head_dim contiguous everywhere.
  const void* q;  // [Q, kv_heads * group, head_dim]
  int64_t q_stride_query, q_stride_head;
  const void* k;  // [pages, kv_heads, page_size, head_dim], the last two contiguous
  int64_t k_stride_page, k_stride_head;
  const void* v;
  int64_t v_stride_page, v_stride_head;
  Dtype dtype;  // of q, k, v and out
  float scale;
  int group, head_dim, page_size;
  // Outputs.
  void* out;  // [Q, kv_heads * group, head_dim]
  int64_t out_stride_query, out_stride_head;
  float* lse;  // [Q, kv_heads * group]
  int64_t lse_stride_query, lse_stride_head;
  // The plan (tree_plan.h).
  int num_segments;
  const int32_t* query_order;
  const int32_t* query_lens;
  const int32_t* segment_lens;
  const int32_t* query_begin;
  const int32_t* own_end;
  const int32_t* query_end;
  const int32_t* page_begin;
  const int32_t* page_ids;
};

struct TreeAttentionUnit {
  int kv_head;
  int query_begin, query_end;  // depth-first numbers
};

// Tokens of a chunk: K and V of one chunk and head fit into 256 KiB of float32.
constexpr int chunk_tokens(int head_dim) {
  return head_dim <= 64 ? 512 : head_dim <= 128 ? 256 : 128;
}

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kRowBlock = 8;  // rows that share one load of K or V, at most

// Rows of a unit, so that states and queries stay in the L2 cache; at least one query.
constexpr int max_unit_queries(int group) { return group >= 512 ? 1 : 512 / group; }

// float32 words of scratch for a unit of `rows` rows: K transposed, V, scores, one block's sums;
// then m, s, acc and q of each row. Everything starts on a cache line.
constexpr int64_t unit_words(int64_t rows, int head_dim) {
  const int64_t chunk = chunk_tokens(head_dim);
  const int64_t padded = (rows + 15) / 16 * 16;
  return 2 * chunk * head_dim + kRowBlock * (chunk + 16) + kRowBlock * head_dim +
         padded * (2 + 2 * head_dim) + 16;
}

#define MF_DECLARE(isa)                                                                  \
  namespace isa {                                                                        \
  void tree_attention(const TreeAttentionArgs& args, const TreeAttentionUnit& unit, float* scratch); \
  }
MF_FOR_EACH_ISA(MF_DECLARE)
#undef MF_DECLARE

}  // namespace marco_fast
