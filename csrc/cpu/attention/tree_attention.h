// Attention of many queries over a forest of paged KV segments. Each segment is read once for all
// queries.
//
// Work is cut into units of one KV head and an interval of depth-first queries. Each query_head (a
// query and one head of its group) has a running state (m, s, acc). A unit walks the segments from
// the roots down. A segment is cut into chunks at fixed token positions, and one formula adds a
// chunk to the state of every query_head that sees it. So the bits of a query_head depend on its
// path alone.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/dtypes.h"
#include "base/isa.h"

namespace marco_fast {

struct TreeAttentionArgs {
  // Inputs; strides in elements, head_dim contiguous everywhere.
  const void* q;  // [Q, num_kv_heads * group, head_dim]
  int64_t q_stride_query, q_stride_head;
  const void* k;  // [num_pages, num_kv_heads, page_size, head_dim], the last two contiguous
  int64_t k_stride_page, k_stride_head;
  const void* v;
  int64_t v_stride_page, v_stride_head;
  Dtype dtype;  // of q, k, v and out
  float scale;
  int group, head_dim, page_size;
  // Outputs.
  void* out;  // [Q, num_kv_heads * group, head_dim]
  int64_t out_stride_query, out_stride_head;
  float* lse;  // [Q, num_kv_heads * group]
  int64_t lse_stride_query, lse_stride_head;
  // The plan (plan.h).
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

// Tokens per chunk on a CPU: K and V of one chunk and head are at most 256 KiB of float32.
constexpr int cpu_chunk_tokens(int head_dim) {
  return head_dim <= 64 ? 512 : head_dim <= 128 ? 256 : 128;
}

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kBlockQueryHeads = 8;  // at most; they share each load of K or V

// Queries per unit: at most 512 query_heads, whose states and q stay in the L2 cache, but at least
// one query.
constexpr int max_unit_queries(int group) { return group >= 512 ? 1 : 512 / group; }

// float32 words of scratch for a unit: K transposed, V, scores and the sums of one block; then m,
// s, acc and q of each query_head. Everything starts on a cache line.
constexpr int64_t unit_words(int64_t query_heads, int head_dim) {
  const int64_t chunk = cpu_chunk_tokens(head_dim);
  const int64_t padded = (query_heads + 15) / 16 * 16;
  return 2 * chunk * head_dim + kBlockQueryHeads * (chunk + 16) + kBlockQueryHeads * head_dim +
         padded * (2 + 2 * head_dim) + 16;
}

#define MF_DECLARE(isa)                                                             \
  namespace isa {                                                                   \
  void tree_attention(const TreeAttentionArgs& args, const TreeAttentionUnit& unit, \
                      float* scratch);                                              \
  }
MF_FOR_EACH_ISA(MF_DECLARE)
#undef MF_DECLARE

}  // namespace marco_fast
