#include "attention/plan.h"

#include <algorithm>
#include <cstdio>
#include <limits>

namespace marco_fast {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

PlanError value_error(const char* format, long long a, long long b, long long c) {
  char text[192];
  std::snprintf(text, sizeof text, format, a, b, c);
  return {false, text};
}

PlanError index_error(const char* format, long long a, long long b, long long c) {
  PlanError error = value_error(format, a, b, c);
  error.index = true;
  return error;
}

struct Scratch {
  std::vector<int32_t> own;       // [N] how many queries end in the segment
  std::vector<int32_t> below;     // [N] how many queries are at or below it
  std::vector<int32_t> next;      // [N] the next number to give to a query at or below it
  std::vector<int32_t> position;  // [N] its index in the plan, or -1
};

PlanError check_segments(const TreePlanInput& in) {
  for (int64_t n = 0; n < in.num_segments; ++n) {
    const int64_t parent = in.parents[n], length = in.segment_lens[n];
    if (parent < -1 || parent >= in.num_segments)
      return index_error("expected parents[%lld] in -1..%lld, got %lld", n, in.num_segments - 1,
                         parent);
    if (parent >= n)
      return value_error("expected parents before children, got parents[%lld] = %lld", n, parent,
                         0);
    if (length < 0 || length > kMaxInt32)
      return value_error("expected segment_lens[%lld] >= 0 and below 2^31, got %lld", n, length, 0);
  }
  return {};
}

PlanError count_queries(const TreePlanInput& in, Scratch* s) {
  s->own.assign(in.num_segments, 0);
  for (int64_t i = 0; i < in.num_queries; ++i) {
    const int64_t leaf = in.leaves[i];
    if (leaf < 0 || leaf >= in.num_segments)
      return index_error("expected leaves[%lld] in 0..%lld, got %lld", i, in.num_segments - 1,
                         leaf);
    ++s->own[leaf];
    if (in.leaf_lens && (in.leaf_lens[i] < 0 || in.leaf_lens[i] > in.segment_lens[leaf]))
      return value_error("expected leaf_lens[%lld] in 0..%lld, got %lld", i, in.segment_lens[leaf],
                         in.leaf_lens[i]);
  }
  s->below = s->own;
  for (int64_t n = in.num_segments - 1; n >= 0; --n)
    if (in.parents[n] >= 0) s->below[in.parents[n]] += s->below[n];
  return {};
}

PlanError check_growth(const TreePlanInput& in, const Scratch& s) {
  if (in.max_new_tokens == 0) return {};
  if (in.leaf_lens) return {false, "expected no leaf_lens with max_new_tokens > 0, got both"};
  for (int64_t n = 0; n < in.num_segments; ++n) {
    if (s.own[n] > 1)
      return value_error("expected distinct leaves with max_new_tokens > 0, got %lld %lld times", n,
                         s.own[n], 0);
    if (in.parents[n] >= 0 && s.own[in.parents[n]])
      return value_error(
          "expected leaves without children with max_new_tokens > 0, got leaf %lld, parent of %lld",
          in.parents[n], n, 0);
  }
  return {};
}

// Gives every segment of the plan its interval of queries: its own first, then child by child.
void number_queries(const TreePlanInput& in, Scratch* s, TreePlan* plan) {
  s->next.resize(in.num_segments);
  s->position.assign(in.num_segments, -1);
  int64_t active = 0;
  for (const int32_t below : s->below) active += below > 0;
  for (std::vector<int32_t>* each : {&plan->segment_ids, &plan->segment_parents, &plan->query_begin,
                                     &plan->own_end, &plan->query_end})
    each->resize(active);
  int32_t next_root = 0, a = 0;
  for (int64_t n = 0; n < in.num_segments; ++n) {
    if (s->below[n] == 0) continue;
    const int64_t parent = in.parents[n];
    int32_t* from = parent < 0 ? &next_root : &s->next[parent];
    const int32_t begin = *from;
    *from += s->below[n];
    s->next[n] = begin + s->own[n];
    s->position[n] = a;
    plan->segment_ids[a] = static_cast<int32_t>(n);
    plan->segment_parents[a] = parent < 0 ? -1 : s->position[parent];
    plan->query_begin[a] = begin;
    plan->own_end[a] = begin + s->own[n];
    plan->query_end[a++] = begin + s->below[n];
  }
}

// Sorts the queries that end in a segment by how many of its tokens they see.
void order_own(const TreePlanInput& in, TreePlan* plan) {
  const auto by_length = [&in](int32_t a, int32_t b) { return in.leaf_lens[a] < in.leaf_lens[b]; };
  for (size_t a = 0; a < plan->segment_ids.size(); ++a)
    std::stable_sort(plan->query_order.begin() + plan->query_begin[a],
                     plan->query_order.begin() + plan->own_end[a], by_length);
}

void order_queries(const TreePlanInput& in, Scratch* s, TreePlan* plan) {
  const int64_t queries = in.num_queries;
  plan->query_order.resize(queries);
  plan->query_segment.resize(queries);
  plan->query_lens.resize(queries);
  plan->query_position.resize(queries);
  for (size_t a = 0; a < plan->segment_ids.size(); ++a)
    s->next[plan->segment_ids[a]] = plan->query_begin[a];
  for (int64_t i = 0; i < queries; ++i)
    plan->query_order[s->next[in.leaves[i]]++] = static_cast<int32_t>(i);
  if (in.leaf_lens) order_own(in, plan);
  for (int64_t position = 0; position < queries; ++position) {
    const int32_t i = plan->query_order[position];
    const int64_t leaf = in.leaves[i];
    plan->query_position[i] = static_cast<int32_t>(position);
    plan->query_segment[position] = s->position[leaf];
    plan->query_lens[position] =
        static_cast<int32_t>(in.leaf_lens ? in.leaf_lens[i] : in.segment_lens[leaf]);
  }
}

// How many tokens of each segment are read, and how many tokens each query sees.
PlanError measure(const TreePlanInput& in, TreePlan* plan) {
  const size_t active = plan->segment_ids.size();
  std::vector<int64_t> above(active);  // tokens on the path up to and including the segment
  plan->segment_lens.resize(active);
  for (size_t a = 0; a < active; ++a) {
    const int32_t parent = plan->segment_parents[a], own = plan->own_end[a];
    const int64_t length = in.segment_lens[plan->segment_ids[a]];
    above[a] = length + (parent < 0 ? 0 : above[parent]);
    const bool read_whole = plan->query_end[a] > own;
    plan->segment_lens[a] = read_whole ? static_cast<int32_t>(length) : plan->query_lens[own - 1];
    if (above[a] + in.max_new_tokens > kMaxInt32)
      return value_error("expected paths of at most 2^31 - 1 tokens, got %lld", above[a], 0, 0);
  }
  plan->path_lens.resize(in.num_queries);
  for (int64_t i = 0; i < in.num_queries; ++i) {
    const int32_t a = plan->query_segment[i];
    plan->path_lens[i] = static_cast<int32_t>(above[a] - in.segment_lens[plan->segment_ids[a]] +
                                              plan->query_lens[i]);
  }
  return {};
}

// Copies the ids of the pages that are read, or will be after max_new_tokens.
PlanError collect_pages(const TreePlanInput& in, TreePlan* plan) {
  plan->page_begin.assign(plan->segment_ids.size() + 1, 0);
  int32_t largest = -1;
  for (size_t a = 0; a < plan->segment_ids.size(); ++a) {
    const int64_t segment = plan->segment_ids[a];
    const bool grows = plan->own_end[a] > plan->query_begin[a];
    const int64_t capacity = plan->segment_lens[a] + (grows ? in.max_new_tokens : 0);
    const int64_t count = (capacity + in.page_size - 1) / in.page_size;
    if (count > in.max_pages)
      return value_error("expected block_table with at least %lld pages for node %lld, got %lld",
                         count, segment, in.max_pages);
    const int32_t* ids = in.block_table + segment * in.block_table_stride;
    int32_t smallest = 0;
    for (int64_t p = 0; p < count; ++p) {
      smallest = std::min(smallest, ids[p]);
      largest = std::max(largest, ids[p]);
    }
    if (smallest < 0 || largest == kMaxInt32)
      return index_error("expected page ids >= 0 in block_table[%lld], got %lld", segment,
                         smallest < 0 ? smallest : largest, 0);
    plan->page_ids.insert(plan->page_ids.end(), ids, ids + count);
    plan->page_begin[a + 1] = static_cast<int32_t>(plan->page_ids.size());
  }
  plan->num_pages_needed = largest + 1;
  return {};
}

}  // namespace

PlanError make_plan(const TreePlanInput& in, TreePlan* plan) {
  Scratch s;
  if (PlanError error = check_segments(in)) return error;
  if (PlanError error = count_queries(in, &s)) return error;
  if (PlanError error = check_growth(in, s)) return error;
  number_queries(in, &s, plan);
  order_queries(in, &s, plan);
  if (PlanError error = measure(in, plan)) return error;
  plan->max_new_tokens = static_cast<int32_t>(in.max_new_tokens);
  plan->gained.assign(in.num_queries, 0);
  return collect_pages(in, plan);
}

PlanError advance_plan(const bool* active, TreePlan* plan) {
  const size_t queries = plan->query_order.size();
  for (size_t i = 0; i < queries; ++i)
    if ((!active || active[i]) && plan->gained[plan->query_position[i]] >= plan->max_new_tokens)
      return value_error(
          "expected at most max_new_tokens = %lld new tokens, query %lld has them all",
          plan->max_new_tokens, static_cast<long long>(i), 0);
  for (size_t position = 0; position < queries; ++position) {
    if (active && !active[plan->query_order[position]]) continue;
    ++plan->gained[position];
    ++plan->query_lens[position];
    ++plan->path_lens[position];
    ++plan->segment_lens[plan->query_segment[position]];
  }
  return {};
}

}  // namespace marco_fast
