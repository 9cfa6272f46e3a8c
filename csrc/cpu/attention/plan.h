// The plan of a tree attention call: which queries read which segment, and from which pages.
//
// Queries are numbered depth first, so those at or below a segment are one interval and a kernel
// needs interval tests only. Segments without a query are left out. Every array is plain int32, owned
// here, and independent of the caller's buffers after planning.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace marco_fast {

struct TreePlanInput {
  int64_t num_nodes, num_queries;
  const int64_t* parents;       // [num_nodes], -1 or an earlier node
  const int64_t* segment_lens;  // [num_nodes]
  const int32_t* block_table;   // [num_nodes, max_pages], rows block_table_stride apart
  int64_t block_table_stride, max_pages;
  const int64_t* leaves;     // [num_queries]
  const int64_t* leaf_lens;  // [num_queries], or null: every token of the leaf
  int64_t page_size, max_new_tokens;
};

struct TreePlan {
  // Q queries, depth first.
  std::vector<int32_t> query_order;    // [Q] the caller's index of query i
  std::vector<int32_t> query_segment;  // [Q] where query i ends: an index into the arrays below
  std::vector<int32_t> query_lens;     // [Q] how many tokens of that segment it sees
  std::vector<int32_t> path_lens;      // [Q] how many tokens it sees in all
  // A segments with a query at or below them, in the caller's order: parents first.
  std::vector<int32_t> segment_ids;      // [A] the caller's node
  std::vector<int32_t> segment_parents;  // [A] index of the parent in these arrays, or -1
  std::vector<int32_t> segment_lens;     // [A] tokens that some query reads
  std::vector<int32_t> query_begin;      // [A] queries [query_begin, query_end) read the segment, of
  std::vector<int32_t> own_end;          // [A] which [query_begin, own_end) end in it, and see
  std::vector<int32_t> query_end;        // [A] query_lens of its tokens (ascending); the others all
  std::vector<int32_t> page_begin;       // [A + 1] the segment's pages, capacity included, are
  std::vector<int32_t> page_ids;         // page_ids[page_begin[a] .. page_begin[a + 1])
  std::vector<int32_t> query_position;   // [Q] inverse of query_order
  int32_t num_pages_needed = 0;          // 1 + the largest page id
  int32_t max_new_tokens = 0;
  std::vector<int32_t> gained;  // [Q] tokens query i's leaf has gained since planning
};

// What is wrong with the input: an id out of range, or another value; empty text: nothing.
struct PlanError {
  bool index = false;
  std::string text;
  explicit operator bool() const { return !text.empty(); }
};

PlanError make_plan(const TreePlanInput& in, TreePlan* plan);

// Adds one token to the leaf of each query i of the caller's order with active[i] (null: all).
// Nothing changes where an error is returned.
PlanError advance_plan(const bool* active, TreePlan* plan);

}  // namespace marco_fast
