// The work list of tree attention on a device: which programs read which tokens for which queries.
//
// A segment is cut into chunks at fixed token positions, and the chunks of a path are gathered into
// groups, greedily from the root: a group is full once it holds group_tokens. Both depend on the path
// alone. A query's result is the fold of its groups, each the fold of its chunks, root to leaf, so who
// computes what changes no bit:
// - a run is a list of consecutive chunks with the same readers. It gives each of its rows one partial;
//   a run of several chunks starts a group, and folds them as the merge would.
// - an item is a run and a tile of its rows; row = (query of the run's interval, head of the group).
// A query of one run needs no merge: its item writes the result.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "attention/plan.h"

namespace marco_fast {

struct TreeItemsOptions {
  int64_t group, kv_heads;
  int64_t chunk_tokens, group_tokens;  // part of the result's definition, see above
  int64_t tile_rows;                   // rows of an item, or 0: chosen here
  int64_t enough_items;                // programs that fill the device: below, runs stay shorter
};

struct TreeItems {
  static constexpr int kItemWords = 6;
  std::vector<int32_t> items;     // [I, 6] chunk_begin, chunk_end, query_begin, query_end, first row,
                                  // 2 * (the run's place on the path) + (it goes on with a group)
  std::vector<int32_t> chunks;    // [C, 2] segment, first token; a run's are consecutive
  std::vector<int32_t> partial_begin;  // [Q + 1] query i's partials; none where one run is all
  std::vector<int32_t> merges;         // [M] queries whose result the merge writes
  int64_t tile_rows = 0;
};

namespace items_detail {

struct Run {
  int32_t query_begin, query_end;
  int32_t place;   // 2 * ordinal + joins
  int32_t tokens;
  int32_t chunks, chunk_begin;
};

struct Chunk {
  int32_t run, segment, begin;
};

// What a path looks like at the end of a segment, for the segments below.
struct PathEnd {
  int32_t fill = 0;       // tokens of the unfinished group; 0: the next chunk starts one
  int32_t runs = 0;       // runs so far
  int32_t open_run = -1;  // a run that the next chunk may join
};

class Builder {
 public:
  Builder(const TreePlan& plan, const TreeItemsOptions& options)
      : plan_(plan), options_(options), ends_(plan.segment_ids.size()) {}

  TreeItems build() {
    items_.partial_begin.assign(plan_.query_order.size() + 1, 0);
    choose_limit();
    for (size_t a = 0; a < ends_.size(); ++a) segment(static_cast<int32_t>(a));
    runs_.resize(num_runs_);
    chunks_.resize(num_chunks_);
    number_partials();
    place_chunks();
    items_.tile_rows = options_.tile_rows ? options_.tile_rows : best_tile_rows();
    emit_items();
    return std::move(items_);
  }

 private:
  bool grows(int32_t a) const {
    return plan_.max_new_tokens > 0 && plan_.own_end[a] > plan_.query_begin[a];
  }

  // Tokens that are, or may come to be, read.
  int64_t capacity(int32_t a) const {
    const int64_t room =
        grows(a) ? plan_.max_new_tokens - plan_.gained[plan_.query_begin[a]] : 0;
    return plan_.segment_lens[a] + room;
  }

  int64_t rows(int32_t begin, int32_t end) const { return (end - begin) * options_.group; }

  // A run is as long as its group unless that leaves part of the device idle. Makes room for chunks
  // and runs too.
  void choose_limit() {
    int64_t tokens = 0, work = 0;  // work: tokens x tiles of 32 rows
    for (size_t a = 0; a < ends_.size(); ++a) {
      const int64_t more = capacity(static_cast<int32_t>(a));
      tokens += more;
      work += more * ((rows(plan_.query_begin[a], plan_.query_end[a]) + 31) / 32);
    }
    const int64_t items = options_.enough_items > 0 ? options_.enough_items : 1;
    limit_ = std::min(options_.group_tokens, work * options_.kv_heads / items);
    chunks_.resize(ends_.size() + tokens / options_.chunk_tokens);
    runs_.resize(chunks_.size());
  }

  // The run of the parent that this segment's first chunk may join: of the same readers.
  int32_t inherited_run(int32_t a, int32_t parent) const {
    if (parent < 0 || plan_.own_end[parent] != plan_.query_begin[parent]) return -1;
    const bool same = plan_.query_begin[a] == plan_.query_begin[parent] &&
                      plan_.query_end[a] == plan_.query_end[parent];
    return same ? ends_[parent].open_run : -1;
  }

  void segment(int32_t a) {
    const int32_t parent = plan_.segment_parents[a];
    PathEnd end = parent < 0 ? PathEnd{} : ends_[parent];
    end.open_run = inherited_run(a, parent);
    const int64_t tokens = capacity(a);
    const int32_t own_end = plan_.own_end[a];
    const bool fixed = !grows(a);
    int32_t reader = plan_.query_begin[a];  // the first query that sees the chunk
    for (int64_t begin = 0; begin < tokens; begin += options_.chunk_tokens) {
      for (; fixed && reader < own_end && plan_.query_lens[reader] <= begin; ++reader)
        items_.partial_begin[reader + 1] = end.runs;
      const auto count = static_cast<int32_t>(std::min(options_.chunk_tokens, tokens - begin));
      const bool joins = end.fill > 0;
      int32_t r = end.open_run;
      if (!joins || r < 0 || runs_[r].tokens >= limit_) {
        r = num_runs_++;
        runs_[r].query_begin = reader;
        runs_[r].query_end = plan_.query_end[a];
        runs_[r].place = 2 * end.runs++ + joins;
        end.open_run = joins ? -1 : r;
      }
      runs_[r].tokens += count;
      ++runs_[r].chunks;
      Chunk& chunk = chunks_[num_chunks_++];
      chunk.run = r, chunk.segment = a, chunk.begin = static_cast<int32_t>(begin);
      end.fill += count;
      if (end.fill >= options_.group_tokens) end.fill = 0;
    }
    for (; reader < own_end; ++reader) items_.partial_begin[reader + 1] = end.runs;
    ends_[a] = end;
  }

  // From how many runs a query has to where its partials are.
  void number_partials() {
    for (size_t i = 0; i + 1 < items_.partial_begin.size(); ++i) {
      const int32_t runs = items_.partial_begin[i + 1];
      if (runs != 1) items_.merges.push_back(static_cast<int32_t>(i));
      items_.partial_begin[i + 1] = items_.partial_begin[i] + (runs > 1 ? runs : 0);
    }
  }

  void place_chunks() {
    int32_t next = 0;
    for (Run& run : runs_) {
      run.chunk_begin = next;
      next += run.chunks;
      run.chunks = 0;
    }
    items_.chunks.resize(2 * chunks_.size());
    for (const Chunk& chunk : chunks_) {
      Run& run = runs_[chunk.run];
      int32_t* to = items_.chunks.data() + 2 * (run.chunk_begin + run.chunks++);
      to[0] = chunk.segment;
      to[1] = chunk.begin;
    }
  }

  // `tile` is a power of two.
  int64_t tiles(const Run& run, int64_t tile) const {
    return (rows(run.query_begin, run.query_end) + tile - 1) >> __builtin_ctzll(tile);
  }

  // A tile costs its tokens' way into the processor, worth the arithmetic of about 32 rows, and its
  // own rows' arithmetic, padding included. Ties: fewer rows.
  int64_t best_tile_rows() const {
    int64_t narrow = 0, wide = 0;
    for (const Run& run : runs_) {
      narrow += tiles(run, 16) * run.tokens;
      wide += tiles(run, 32) * run.tokens;
    }
    return wide * (32 + 32) < narrow * (32 + 16) ? 32 : 16;
  }

  // Longest first, so that the last ones to finish are short; the tiles of a run stay together and
  // share its tokens in the cache.
  std::vector<int32_t> longest_first() const {
    constexpr int32_t kStep = 16;
    int32_t longest = 0;
    for (const Run& run : runs_) longest = std::max(longest, run.tokens);
    std::vector<int32_t> first(longest / kStep + 2, 0), order(runs_.size());
    const auto bucket = [longest](const Run& run) { return longest / kStep - run.tokens / kStep; };
    for (const Run& run : runs_) ++first[bucket(run) + 1];
    for (size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
    for (size_t r = 0; r < runs_.size(); ++r) order[first[bucket(runs_[r])]++] = static_cast<int32_t>(r);
    return order;
  }

  void emit_items() {
    const auto tile = static_cast<int32_t>(items_.tile_rows);
    size_t count = 0;
    for (const Run& run : runs_) count += tiles(run, tile);
    items_.items.resize(TreeItems::kItemWords * count);
    int32_t* to = items_.items.data();
    for (const int32_t r : longest_first()) {
      const Run& run = runs_[r];
      const auto end = static_cast<int32_t>(rows(run.query_begin, run.query_end));
      for (int32_t row = 0; row < end; row += tile, to += TreeItems::kItemWords) {
        to[0] = run.chunk_begin, to[1] = run.chunk_begin + run.chunks;
        to[2] = run.query_begin, to[3] = run.query_end;
        to[4] = row, to[5] = run.place;
      }
    }
  }

  const TreePlan& plan_;
  const TreeItemsOptions& options_;
  TreeItems items_;
  // Written field by field: copying a whole entry that was just put together would wait for it.
  std::vector<Run> runs_;
  std::vector<Chunk> chunks_;
  int32_t num_runs_ = 0, num_chunks_ = 0;
  std::vector<PathEnd> ends_;
  int64_t limit_ = 0;
};

}  // namespace items_detail

// The sections of a plan on a device, in the order in which they lie in one array; each starts at a
// multiple of 4 words, after kHeaderWords that hold how many words each section has.
inline constexpr int kSections = 10;
inline constexpr const char* kSectionNames[kSections] = {
    "items", "chunks", "partial_begin", "merges", "query_order", "query_lens", "own_end",
    "segment_lens", "page_begin", "page_ids"};
inline constexpr int kHeaderWords = 16;

using SectionSizes = std::array<int64_t, kSections>;
using Sections = std::array<const std::vector<int32_t>*, kSections>;

inline TreeItems build_items(const TreePlan& plan, const TreeItemsOptions& options) {
  return items_detail::Builder(plan, options).build();
}

inline Sections sections_of(const TreePlan& plan, const TreeItems& items) {
  return {&items.items,         &items.chunks,      &items.partial_begin, &items.merges,
          &plan.query_order,    &plan.query_lens,   &plan.own_end,        &plan.segment_lens,
          &plan.page_begin,     &plan.page_ids};
}

// Words of the array with room for `sizes`.
inline int64_t packed_words(const SectionSizes& sizes) {
  int64_t words = kHeaderWords;
  for (const int64_t size : sizes) words += (size + 3) / 4 * 4;
  return words;
}

// Writes header and sections to `to`, section i at the place it has with room for `room`.
inline void pack(const Sections& sections, const SectionSizes& room, int64_t tile_rows, int32_t* to) {
  std::fill(to, to + kHeaderWords, 0);
  to[kSections] = static_cast<int32_t>(tile_rows);
  int64_t at = kHeaderWords;
  for (int i = 0; i < kSections; ++i) {
    to[i] = static_cast<int32_t>(sections[i]->size());
    int32_t* end = std::copy(sections[i]->begin(), sections[i]->end(), to + at);
    at += (room[i] + 3) / 4 * 4;
    std::fill(end, to + at, 0);
  }
}

}  // namespace marco_fast
