// The work items of tree attention on a device: which program reads which tokens for which queries.
//
// A segment is cut into chunks at fixed token positions. The chunks of a path are gathered into
// token groups, greedily from the root: a token group is full once it holds `token_group` tokens.
// Both depend on the path alone. A query's result is the fold of its token groups from root to
// leaf, and each token group is the fold of its chunks, so no bit depends on which program computes
// what:
// - A span is a list of consecutive chunks that the same queries read. It gives one partial to each
//   of its query_heads. A span of several chunks starts with a token group, and folds them as the
//   merge would.
// - A work item is a span and a tile of its query_heads. A query_head is a query of the span's
//   interval and one head of the group.
// A query that reads one span needs no merge: the work item writes its result.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "attention/plan.h"

namespace marco_fast {

struct WorkItemsOptions {
  int64_t group, num_kv_heads;
  int64_t chunk_tokens, token_group;  // these define the result's bits, see above
  int64_t tile_query_heads;           // per item; 0: chosen here
  int64_t enough_items;  // how many fill the device; where there would be fewer, spans are shorter
};

struct WorkItems {
  static constexpr int kItemWords = 6;
  // [I, 6] chunk_begin, chunk_end, query_begin, query_end, first query_head, and 2 * (how many
  // spans precede this one on the path) + (1 if it continues a token group)
  std::vector<int32_t> items;
  std::vector<int32_t> chunks;  // [C, 2] segment, first token; the chunks of a span are consecutive
  std::vector<int32_t> partial_begin;  // [Q + 1] the partials of query i; none if it reads one span
  std::vector<int32_t> merges;         // [M] the queries whose result the merge writes
  int64_t tile_query_heads = 0;
};

namespace work_items {

struct Span {
  int32_t query_begin, query_end;
  int32_t ordinal_joins;  // as the last word of an item
  int32_t tokens;
  int32_t chunks, chunk_begin;
};

struct Chunk {
  int32_t span, segment, begin;
};

// The state of a path at the end of a segment, where the segments below continue.
struct PathEnd {
  int32_t fill = 0;   // tokens of the token group that is not full; 0: the next chunk begins one
  int32_t spans = 0;  // how many so far
  int32_t open_span = -1;  // a span that the next chunk may join, or -1
};

class Builder {
 public:
  Builder(const TreePlan& plan, const WorkItemsOptions& options)
      : plan_(plan), options_(options), ends_(plan.segment_ids.size()) {}

  WorkItems build() {
    items_.partial_begin.assign(plan_.query_order.size() + 1, 0);
    choose_limit();
    for (size_t a = 0; a < ends_.size(); ++a) segment(static_cast<int32_t>(a));
    spans_.resize(num_spans_);
    chunks_.resize(num_chunks_);
    number_partials();
    order_chunks();
    items_.tile_query_heads = options_.tile_query_heads ? options_.tile_query_heads : best_tile();
    emit_items();
    return std::move(items_);
  }

 private:
  bool grows(int32_t a) const {
    return plan_.max_new_tokens > 0 && plan_.own_end[a] > plan_.query_begin[a];
  }

  // Tokens that are read, or will be after max_new_tokens.
  int64_t capacity(int32_t a) const {
    const int64_t to_come =
        grows(a) ? plan_.max_new_tokens - plan_.gained[plan_.query_begin[a]] : 0;
    return plan_.segment_lens[a] + to_come;
  }

  int64_t query_heads(int32_t begin, int32_t end) const { return (end - begin) * options_.group; }

  // A span is as long as its token group, unless that leaves part of the device idle. Also
  // allocates chunks and spans.
  void choose_limit() {
    int64_t tokens = 0, work = 0;  // work: tokens * tiles of 32 query_heads
    for (size_t a = 0; a < ends_.size(); ++a) {
      const int64_t more = capacity(static_cast<int32_t>(a));
      tokens += more;
      work += more * ((query_heads(plan_.query_begin[a], plan_.query_end[a]) + 31) / 32);
    }
    const int64_t items = options_.enough_items > 0 ? options_.enough_items : 1;
    limit_ = std::min(options_.token_group, work * options_.num_kv_heads / items);
    chunks_.resize(ends_.size() + tokens / options_.chunk_tokens);
    spans_.resize(chunks_.size());
  }

  // The parent's span that this segment's first chunk may join, or -1: the same queries must read
  // both.
  int32_t inherited_span(int32_t a, int32_t parent) const {
    if (parent < 0 || plan_.own_end[parent] != plan_.query_begin[parent]) return -1;
    const bool same = plan_.query_begin[a] == plan_.query_begin[parent] &&
                      plan_.query_end[a] == plan_.query_end[parent];
    return same ? ends_[parent].open_span : -1;
  }

  void segment(int32_t a) {
    const int32_t parent = plan_.segment_parents[a];
    PathEnd end = parent < 0 ? PathEnd{} : ends_[parent];
    end.open_span = inherited_span(a, parent);
    const int64_t tokens = capacity(a);
    const int32_t own_end = plan_.own_end[a];
    const bool fixed = !grows(a);
    int32_t reader = plan_.query_begin[a];  // the first query that sees the chunk
    for (int64_t begin = 0; begin < tokens; begin += options_.chunk_tokens) {
      for (; fixed && reader < own_end && plan_.query_lens[reader] <= begin; ++reader)
        items_.partial_begin[reader + 1] = end.spans;
      const auto count = static_cast<int32_t>(std::min(options_.chunk_tokens, tokens - begin));
      const bool joins = end.fill > 0;
      int32_t r = end.open_span;
      if (!joins || r < 0 || spans_[r].tokens >= limit_) {
        r = num_spans_++;
        spans_[r].query_begin = reader;
        spans_[r].query_end = plan_.query_end[a];
        spans_[r].ordinal_joins = 2 * end.spans++ + joins;
        end.open_span = joins ? -1 : r;
      }
      spans_[r].tokens += count;
      ++spans_[r].chunks;
      Chunk& chunk = chunks_[num_chunks_++];
      chunk.span = r, chunk.segment = a, chunk.begin = static_cast<int32_t>(begin);
      end.fill += count;
      if (end.fill >= options_.token_group) end.fill = 0;
    }
    for (; reader < own_end; ++reader) items_.partial_begin[reader + 1] = end.spans;
    ends_[a] = end;
  }

  // From how many spans each query has to where its partials begin.
  void number_partials() {
    for (size_t i = 0; i + 1 < items_.partial_begin.size(); ++i) {
      const int32_t spans = items_.partial_begin[i + 1];
      if (spans != 1) items_.merges.push_back(static_cast<int32_t>(i));
      items_.partial_begin[i + 1] = items_.partial_begin[i] + (spans > 1 ? spans : 0);
    }
  }

  void order_chunks() {
    int32_t next = 0;
    for (Span& span : spans_) {
      span.chunk_begin = next;
      next += span.chunks;
      span.chunks = 0;
    }
    items_.chunks.resize(2 * chunks_.size());
    for (const Chunk& chunk : chunks_) {
      Span& span = spans_[chunk.span];
      int32_t* to = items_.chunks.data() + 2 * (span.chunk_begin + span.chunks++);
      to[0] = chunk.segment;
      to[1] = chunk.begin;
    }
  }

  // `tile` is a power of two.
  int64_t tiles(const Span& span, int64_t tile) const {
    return (query_heads(span.query_begin, span.query_end) + tile - 1) >> __builtin_ctzll(tile);
  }

  // A tile costs the loading of its tokens, about as much as the arithmetic of 32 query_heads, and
  // the arithmetic of its own query_heads, padding included. Of equal costs the smaller tile wins.
  int64_t best_tile() const {
    int64_t narrow = 0, wide = 0;
    for (const Span& span : spans_) {
      narrow += tiles(span, 16) * span.tokens;
      wide += tiles(span, 32) * span.tokens;
    }
    return wide * (32 + 32) < narrow * (32 + 16) ? 32 : 16;
  }

  // The spans, longest first, so that the last work to finish is short. The tiles of a span stay
  // together and share its tokens in the cache.
  std::vector<int32_t> longest_first() const {
    constexpr int32_t kStep = 16;
    int32_t longest = 0;
    for (const Span& span : spans_) longest = std::max(longest, span.tokens);
    std::vector<int32_t> first(longest / kStep + 2, 0), order(spans_.size());
    const auto bucket = [longest](const Span& span) {
      return longest / kStep - span.tokens / kStep;
    };
    for (const Span& span : spans_) ++first[bucket(span) + 1];
    for (size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
    for (size_t r = 0; r < spans_.size(); ++r)
      order[first[bucket(spans_[r])]++] = static_cast<int32_t>(r);
    return order;
  }

  void emit_items() {
    const auto tile = static_cast<int32_t>(items_.tile_query_heads);
    size_t count = 0;
    for (const Span& span : spans_) count += tiles(span, tile);
    items_.items.resize(WorkItems::kItemWords * count);
    int32_t* to = items_.items.data();
    for (const int32_t r : longest_first()) {
      const Span& span = spans_[r];
      const auto end = static_cast<int32_t>(query_heads(span.query_begin, span.query_end));
      for (int32_t first = 0; first < end; first += tile, to += WorkItems::kItemWords) {
        to[0] = span.chunk_begin, to[1] = span.chunk_begin + span.chunks;
        to[2] = span.query_begin, to[3] = span.query_end;
        to[4] = first, to[5] = span.ordinal_joins;
      }
    }
  }

  const TreePlan& plan_;
  const WorkItemsOptions& options_;
  WorkItems items_;
  // Written field by field: to copy a whole entry right after its fields were written would stall.
  std::vector<Span> spans_;
  std::vector<Chunk> chunks_;
  int32_t num_spans_ = 0, num_chunks_ = 0;
  std::vector<PathEnd> ends_;
  int64_t limit_ = 0;
};

}  // namespace work_items

inline WorkItems make_work_items(const TreePlan& plan, const WorkItemsOptions& options) {
  return work_items::Builder(plan, options).build();
}

}  // namespace marco_fast
