// A plan as arrays: packed with its work items for a device, and made again from arrays.
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

// A packed plan is one int32 array: a header of kHeaderWords, then the sections in this order, each
// beginning at a multiple of 4 words. The header holds how many words each section has, then
// tile_query_heads.
inline constexpr int kSections = 10;
inline constexpr const char* kSectionNames[kSections] = {
    "items",      "chunks",  "partial_begin", "merges",     "query_order",
    "query_lens", "own_end", "segment_lens",  "page_begin", "page_ids"};
inline constexpr int kHeaderWords = 16;

using SectionSizes = std::array<int64_t, kSections>;
using Sections = std::array<const std::vector<int32_t>*, kSections>;

inline Sections sections_of(const TreePlan& plan, const WorkItems& items) {
  return {&items.items,      &items.chunks,    &items.partial_begin, &items.merges,
          &plan.query_order, &plan.query_lens, &plan.own_end,        &plan.segment_lens,
          &plan.page_begin,  &plan.page_ids};
}

// Words of a packed plan whose sections have room for `sizes` words.
inline int64_t packed_words(const SectionSizes& sizes) {
  int64_t words = kHeaderWords;
  for (const int64_t size : sizes) words += (size + 3) / 4 * 4;
  return words;
}

// Writes header and sections to `to`. Section i has room for room[i] words; the unused ones are 0.
inline void pack(const Sections& sections, const SectionSizes& room, int64_t tile_query_heads,
                 int32_t* to) {
  std::fill(to, to + kHeaderWords, 0);
  to[kSections] = static_cast<int32_t>(tile_query_heads);
  int64_t at = kHeaderWords;
  for (int i = 0; i < kSections; ++i) {
    to[i] = static_cast<int32_t>(sections[i]->size());
    int32_t* end = std::copy(sections[i]->begin(), sections[i]->end(), to + at);
    at += (room[i] + 3) / 4 * 4;
    std::fill(end, to + at, 0);
  }
}

// The arrays that make a plan, in the order in which Python passes them.
inline constexpr std::array<std::vector<int32_t> TreePlan::*, 10> kPlanArrays = {
    &TreePlan::query_order,     &TreePlan::query_segment, &TreePlan::query_lens,
    &TreePlan::segment_parents, &TreePlan::segment_lens,  &TreePlan::query_begin,
    &TreePlan::own_end,         &TreePlan::query_end,     &TreePlan::page_begin,
    &TreePlan::page_ids};

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
