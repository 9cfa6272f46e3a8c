// Which thread computes which part of a tree attention call.
//
// A unit is one KV head and one stripe, an interval of the depth-first queries. The queries of each
// stripe see about as many tokens. There are only as many stripes as keep every thread busy,
// because a segment above the cut between two stripes is read once for each. No result depends on
// which thread takes which unit.
#pragma once

#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

#include "attention/plan.h"
#include "attention/tree_attention.h"
#include "base/parallel.h"

namespace marco_fast {

using TreeAttentionKernel = void (*)(const TreeAttentionArgs&, const TreeAttentionUnit&, float*);

// With fewer products per thread, starting another thread costs more than it saves.
inline constexpr double kMinProductsPerThread = 250e3;

// float32 words of scratch that a thread needs for any unit of a plan with `queries` queries.
inline int64_t thread_words(int64_t queries, int group, int head_dim) {
  const int64_t most = max_unit_queries(group);
  return unit_words((queries < most ? queries : most) * group, head_dim);
}

// The queries where stripes begin, and the number of queries. There are at least `stripes` stripes,
// or one per query if there are fewer; none is larger than max_unit_queries.
inline std::vector<int> cut_stripes(const TreePlan& plan, int stripes, int group) {
  const int queries = static_cast<int>(plan.path_lens.size()), most = max_unit_queries(group);
  double left = 0;
  for (int32_t tokens : plan.path_lens) left += tokens + 1.0;
  std::vector<int> bounds{0};
  double taken = 0;
  for (int i = 0; i < queries; ++i) {
    taken += plan.path_lens[i] + 1.0;
    const int remaining = stripes - static_cast<int>(bounds.size()) + 1;
    const bool full = i + 1 - bounds.back() >= most;
    if (i + 1 == queries || full || (remaining > 1 && taken * remaining >= left)) {
      bounds.push_back(i + 1);
      left -= taken;
      taken = 0;
    }
  }
  return bounds;
}

inline void set_plan(const TreePlan& plan, TreeAttentionArgs* a) {
  a->num_segments = static_cast<int>(plan.segment_ids.size());
  a->query_order = plan.query_order.data(), a->query_lens = plan.query_lens.data();
  a->segment_lens = plan.segment_lens.data(), a->query_begin = plan.query_begin.data();
  a->own_end = plan.own_end.data(), a->query_end = plan.query_end.data();
  a->page_begin = plan.page_begin.data(), a->page_ids = plan.page_ids.data();
}

inline void run_tree_attention(TreeAttentionKernel kernel, const TreeAttentionArgs& args,
                               const TreePlan& plan, int num_kv_heads, int threads,
                               float* workspace) {
  double tokens = 0;
  for (int32_t length : plan.path_lens) tokens += length;
  const double products = 2 * tokens * args.group * num_kv_heads * args.head_dim;
  const double useful = products / kMinProductsPerThread;
  if (useful < threads) threads = useful < 1 ? 1 : static_cast<int>(useful);
  const std::vector<int> bounds =
      cut_stripes(plan, threads / std::gcd(threads, num_kv_heads), args.group);
  const int stripes = static_cast<int>(bounds.size()) - 1, units = stripes * num_kv_heads;
  const int64_t words =
      thread_words(static_cast<int64_t>(plan.path_lens.size()), args.group, args.head_dim);
  std::atomic<int> next{0};
  parallel(threads < units ? threads : units, [&](int thread, int) {
    for (int unit = next++; unit < units; unit = next++) {
      const int stripe = unit % stripes;
      kernel(args, {unit / stripes, bounds[stripe], bounds[stripe + 1]},
             workspace + thread * words);
    }
  });
}

}  // namespace marco_fast
