// lm_head_confidence: hidden [B, H] times weight [V, H], sampled and scored, the logits never stored.
//
// Logits live for as long as their chunks of the vocabulary are read once more (topk_confidence.h): what
// stays of a row are its candidates, a record a chunk and, where the whole vocabulary may be drawn,
// a sum for every 64 entries. A draw outside the candidates computes the 64 logits it falls among again;
// rows that need more than that are told to the caller, who computes all of theirs.
// A logit has the same bits in any batch and whoever computes it.
#pragma once

#include <cstdint>

#include "confidence/topk_confidence.h"

namespace marco_fast {

inline constexpr int kDrawGroup = 64;         // entries of the vocabulary whose masses are summed
inline constexpr int kGroupsOfChunk = kChunk / kDrawGroup;
// Candidates of a filtered row, at most: more than topk_confidence keeps, since reading a row again costs a
// product. The smaller the vocabulary, the less that costs, and the more the candidates in comparison.
inline constexpr int kMostCandidates = 128;
inline int32_t head_candidates(int64_t entries) {
  const int64_t share = entries / 64;
  return share < 16 ? 16 : share < kMostCandidates ? static_cast<int32_t>(share) : kMostCandidates;
}

struct LMHeadArgs {
  const void* hidden;  // [B, H], rows `hidden_stride` elements apart
  int64_t hidden_stride;
  const void* weight;  // [V, H]
  int64_t weight_stride;
  const float* bias;  // [V] or null
  int64_t size;       // H
  Dtype dtype;        // of hidden and weight
  Dtype rounded;      // of the logits before anything reads them; float32: as they are
  ConfidenceArgs scores;  // logits.data is null; `sample` is not
};

// Rows of hidden as the products read them: words filled up with zeros to whole registers.
struct HeadRows {
  float* words;
  int64_t stride;
};

// What is kept of one row.
struct HeadState {
  ChunkRecord* records;  // [chunks]
  float* groups;         // [chunks, kGroupsOfChunk]: masses relative to the chunk's largest logit
  uint64_t* keys;        // [head_capacity()]
  int32_t count;
};

// What other shards of the vocabulary need of this one's rows (ops/lm_head_records.py).
struct HeadRecords {
  float* top;           // [B] the largest logit
  double* sums;         // [B, 3] of 2^y, of 2^y * y, and of 2^y at the sampling temperature
  int32_t* infs;        // [B] entries of +inf
  int32_t* nans;        // [B] 1: a NaN was seen
  float* logits;        // [B, candidates] the largest, best first; -inf: no token
  int32_t* ids;         // [B, candidates]; -1: no token
  int32_t candidates;
};

inline int32_t head_capacity(const ConfidenceArgs& args) {
  const int32_t drawn = head_candidates(args.logits.cols), most = args.top_k > drawn ? args.top_k : drawn;
  return most < args.logits.cols ? most : static_cast<int32_t>(args.logits.cols);
}

// float32 words of a row of hidden, whatever the instruction set.
inline int64_t head_row_words(int64_t size) { return (size + 31) / 32 * 32; }

#define MF_DECLARE(isa)                                                                           \
  namespace isa {                                                                                 \
  void lm_head_load_row(const LMHeadArgs&, int64_t row, const HeadRows&);                         \
  /* logits[r * stride + v - begin] of rows [row_begin, row_end) and entries [begin, end) */      \
  void lm_head_logits(const LMHeadArgs&, const HeadRows&, int64_t row_begin, int64_t row_end,     \
                      int64_t begin, int64_t end, float* logits, int64_t stride);                 \
  /* Chunks [begin, end) of one row, in ascending order; logits from begin * kChunk on at x */    \
  void lm_head_scan(const LMHeadArgs&, int64_t row, int64_t begin, int64_t end, const float* x,   \
                    HeadState*);                                                                  \
  /* Draws and scores; false, and nothing is written, where all logits of the row are needed */   \
  bool lm_head_finish(const LMHeadArgs&, int64_t row, const HeadRows&, HeadState*);               \
  void lm_head_record(const LMHeadArgs&, int64_t row, HeadState*, const HeadRecords&);            \
  }
MF_FOR_EACH_ISA(MF_DECLARE)
#undef MF_DECLARE

}  // namespace marco_fast
