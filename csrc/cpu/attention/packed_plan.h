// A plan and its work items in one int32 array (the packed plan), and a plan made again from
// arrays.
//
// Arrays may come from anywhere and are checked before anything reads them. After check_plan a
// kernel reads nothing outside them, and every query sees exactly the segments from a root to its
// own.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "attention/plan.h"
#include "attention/work_items.h"

namespace marco_fast {

// The arrays that make a plan, in the order in which Python passes them.
inline constexpr std::array<std::vector<int32_t> TreePlan::*, 10> kPlanArrays = {
    &TreePlan::query_order,     &TreePlan::query_segment, &TreePlan::query_lens,
    &TreePlan::segment_parents, &TreePlan::segment_lens,  &TreePlan::query_begin,
    &TreePlan::own_end,         &TreePlan::query_end,     &TreePlan::page_begin,
    &TreePlan::page_ids};

// A packed plan: a header of kHeaderWords, then the sections: the arrays of kPlanArrays, items,
// chunks, partial_begin and merges, each from a multiple of 4 words on.
// marco_fast/ops/reference/work_items.py draws the header.
inline constexpr int32_t kPackedMagic = 0x4D467470, kPackedVersion = 1;
inline constexpr int kHeaderWords = 24, kCounts = 6, kSections = kPlanArrays.size() + 4;
inline constexpr const char* kCountNames[kCounts] = {"queries", "segments", "pages",
                                                     "items",   "chunks",   "merges"};

using Counts = std::array<int64_t, kCounts>;  // how many of kCountNames
using Heads = std::array<int64_t, 4>;         // num_heads, num_kv_heads, head_dim, page_size

inline Counts counts_of(const TreePlan& plan, const WorkItems& work) {
  const auto size = [](const std::vector<int32_t>& values) { return int64_t(values.size()); };
  return {size(plan.query_order), size(plan.segment_lens),
          size(plan.page_ids),    size(work.items) / WorkItems::kItemWords,
          size(work.chunks) / 2,  size(work.merges)};
}

// Words from the start of one section to the next, where the sections have room for so many.
inline std::array<int64_t, kSections> section_words(const Counts& room) {
  const auto [queries, segments, pages, items, chunks, merges] = room;
  const int64_t q = queries, a = segments, item_words = items * WorkItems::kItemWords;
  std::array<int64_t, kSections> words = {q, q,     q,     a,          a,          a,     a,
                                          a, a + 1, pages, item_words, 2 * chunks, q + 1, merges};
  for (int64_t& each : words) each = (each + 3) / 4 * 4;
  return words;
}

inline int64_t packed_words(const Counts& room) {
  const auto words = section_words(room);
  return std::accumulate(words.begin(), words.end(), int64_t{kHeaderWords});
}

// Writes the packed plan, whose sections have room for `room`; what they do not use is 0.
inline void pack(const TreePlan& plan, const WorkItems& work, const Heads& heads,
                 int64_t chunk_tokens, const Counts& room, int32_t* to) {
  const Counts counts = counts_of(plan, work);
  int32_t* header = to;
  const auto put = [&header](int64_t word) { *header++ = static_cast<int32_t>(word); };
  put(kPackedMagic), put(kPackedVersion);
  for (const int64_t each : heads) put(each);
  put(chunk_tokens), put(work.tile_query_heads);
  put(plan.num_pages_needed), put(work.partial_begin.back());
  for (const int64_t each : counts) put(each);
  for (const int64_t each : room) put(each);
  std::fill(header, to + kHeaderWords, 0);
  to += kHeaderWords;
  std::array<const std::vector<int32_t>*, kSections> sections{};
  for (size_t i = 0; i < kPlanArrays.size(); ++i) sections[i] = &(plan.*kPlanArrays[i]);
  size_t next = kPlanArrays.size();
  for (const auto* each : {&work.items, &work.chunks, &work.partial_begin, &work.merges})
    sections[next++] = each;
  const auto words = section_words(room);
  for (size_t i = 0; i < sections.size(); ++i) {
    int32_t* end = std::copy(sections[i]->begin(), sections[i]->end(), to);
    to += words[i];
    std::fill(end, to, 0);
  }
}

namespace packed_plan {

inline std::string entry(const char* name, int64_t index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

inline std::string range(int64_t low, int64_t high, int64_t got) {
  return " in " + std::to_string(low) + ".." + std::to_string(high) + ", got " +
         std::to_string(got);
}

inline bool outside(int64_t low, int64_t high, int64_t value) {
  return value < low || value > high;
}

inline PlanError check_sizes(const TreePlan& p) {
  const size_t queries = p.query_order.size(), segments = p.segment_lens.size();
  const size_t most = std::numeric_limits<int32_t>::max();
  const bool fit = p.query_segment.size() == queries && p.query_lens.size() == queries &&
                   p.segment_parents.size() == segments && p.query_begin.size() == segments &&
                   p.own_end.size() == segments && p.query_end.size() == segments &&
                   p.page_begin.size() == segments + 1 && p.page_ids.size() <= most;
  if (fit && queries <= most && segments < most) return {};
  return {false, "expected a plan's arrays: three [Q], five [A], page_begin [A + 1], page_ids"};
}

// Checks that a segment's parent comes before it, that each of its tokens has a page, and that its
// queries are among its parent's.
inline PlanError check_segment(const TreePlan& p, int32_t a, int64_t page_size) {
  const int64_t queries = p.query_order.size(), segments = p.segment_lens.size();
  const int64_t parent = p.segment_parents[a], tokens = p.segment_lens[a];
  if (outside(-1, segments - 1, parent))
    return {true, "expected " + entry("segment_parents", a) + range(-1, segments - 1, parent)};
  if (parent >= a)
    return {false, "expected parents before children, got " + entry("segment_parents", a) + " = " +
                       std::to_string(parent)};
  if (tokens < 0)
    return {false, "expected " + entry("segment_lens", a) + " >= 0, got " + std::to_string(tokens)};
  const int64_t first = p.page_begin[a], last = p.page_begin[a + 1];
  if (first < 0 || last < first || last > int64_t(p.page_ids.size()) ||
      last - first < tokens / page_size + (tokens % page_size != 0))
    return {false, "expected pages for " + std::to_string(tokens) + " tokens from " +
                       entry("page_begin", a) + " on, got " + std::to_string(first) + " to " +
                       std::to_string(last)};
  const int64_t low = parent < 0 ? 0 : p.own_end[parent];
  const int64_t high = parent < 0 ? queries : p.query_end[parent];
  const int64_t begin = p.query_begin[a], own = p.own_end[a], end = p.query_end[a];
  if (begin < low || own < begin || end < own || end > high)
    return {false, "expected the queries of segment " + std::to_string(a) +
                       range(low, high, begin) + ", " + std::to_string(own) + ", " +
                       std::to_string(end)};
  return {};
}

inline PlanError check_query(const TreePlan& p, int32_t i, std::vector<bool>* seen) {
  const int64_t queries = p.query_order.size(), segments = p.segment_lens.size();
  const int64_t order = p.query_order[i], segment = p.query_segment[i];
  if (outside(0, queries - 1, order))
    return {true, "expected " + entry("query_order", i) + range(0, queries - 1, order)};
  if ((*seen)[order])
    return {false,
            "expected each query once in query_order, got " + std::to_string(order) + " again"};
  (*seen)[order] = true;
  if (outside(0, segments - 1, segment))
    return {true, "expected " + entry("query_segment", i) + range(0, segments - 1, segment)};
  const bool first = i == p.query_begin[segment];
  if (i < p.query_begin[segment] || i >= p.own_end[segment])
    return {false, "expected query " + std::to_string(i) + " in segment " +
                       std::to_string(segment) + "'s own interval"};
  const int64_t least = first ? 0 : p.query_lens[i - 1], most = p.segment_lens[segment];
  if (outside(least, most, p.query_lens[i]))
    return {false, "expected " + entry("query_lens", i) + range(least, most, p.query_lens[i])};
  return {};
}

// Every interval has as many queries as end at or below its segment. With the nesting that
// check_segment found, it therefore has exactly these queries.
inline PlanError check_intervals(const TreePlan& p) {
  std::vector<int64_t> below(p.segment_lens.size());
  for (int32_t segment : p.query_segment) ++below[segment];
  for (size_t a = below.size(); a-- > 0;) {
    if (below[a] != p.query_end[a] - p.query_begin[a])
      return {false, "expected " + std::to_string(below[a]) + " queries at or below segment " +
                         std::to_string(a) + ", got " +
                         std::to_string(p.query_end[a] - p.query_begin[a])};
    if (p.segment_parents[a] >= 0) below[p.segment_parents[a]] += below[a];
  }
  return {};
}

inline PlanError check_pages(const TreePlan& p) {
  const int32_t most = std::numeric_limits<int32_t>::max() - 1;
  for (size_t i = 0; i < p.page_ids.size(); ++i)
    if (outside(0, most, p.page_ids[i]))
      return {true, "expected " + entry("page_ids", i) + range(0, most, p.page_ids[i])};
  return {};
}

// Fills in the arrays that follow from the others.
inline PlanError derive(TreePlan* p) {
  const size_t segments = p->segment_lens.size(), queries = p->query_order.size();
  std::vector<int64_t> above(segments);
  for (size_t a = 0; a < segments; ++a) {
    const int32_t parent = p->segment_parents[a];
    above[a] = parent < 0 ? 0 : above[parent] + p->segment_lens[parent];
    if (above[a] + p->segment_lens[a] > std::numeric_limits<int32_t>::max())
      return {false, "expected paths of at most 2^31 - 1 tokens, got " +
                         std::to_string(above[a] + p->segment_lens[a])};
  }
  p->segment_ids.resize(segments);
  std::iota(p->segment_ids.begin(), p->segment_ids.end(), 0);
  p->path_lens.resize(queries);
  p->query_position.resize(queries);
  p->gained.assign(queries, 0);
  for (size_t i = 0; i < queries; ++i) {
    p->path_lens[i] = static_cast<int32_t>(above[p->query_segment[i]] + p->query_lens[i]);
    p->query_position[p->query_order[i]] = static_cast<int32_t>(i);
  }
  const auto largest = std::max_element(p->page_ids.begin(), p->page_ids.end());
  p->num_pages_needed = largest == p->page_ids.end() ? 0 : *largest + 1;
  return {};
}

}  // namespace packed_plan

// Checks the arrays of kPlanArrays and fills in the others; page_size is at least 1.
inline PlanError check_plan(int64_t page_size, TreePlan* plan) {
  using namespace packed_plan;
  if (PlanError error = check_sizes(*plan)) return error;
  for (size_t a = 0; a < plan->segment_lens.size(); ++a)
    if (PlanError error = check_segment(*plan, static_cast<int32_t>(a), page_size)) return error;
  std::vector<bool> seen(plan->query_order.size());
  for (size_t i = 0; i < plan->query_order.size(); ++i)
    if (PlanError error = check_query(*plan, static_cast<int32_t>(i), &seen)) return error;
  if (PlanError error = check_intervals(*plan)) return error;
  if (PlanError error = check_pages(*plan)) return error;
  return derive(plan);
}

}  // namespace marco_fast
