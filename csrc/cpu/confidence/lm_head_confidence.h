// lm_head_confidence: logits hidden [B, H] times weight [V, H], sampled and scored, never stored.
//
// Blocks of logits are reduced as they are produced (topk_confidence.h). What is kept of a row are
// its candidates, one record per block and, if the whole vocabulary may be drawn, one sum per
// vocabulary tile. A draw outside the candidates computes the logits of one vocabulary tile again.
// Rows that need more than that are reported to the caller, who computes all their logits.
#pragma once

#include <cstdint>

#include "base/quantized.h"
#include "confidence/topk_confidence.h"

namespace marco_fast {

inline constexpr int kTilesPerBlock = kVocabBlock / kVocabTile;
// How many candidates of a filtered row are kept: more than by topk_confidence, because to read a
// row again takes a product here. With a small vocabulary the product costs little compared with
// candidates.
inline constexpr int kMostCandidates = 128;
inline int32_t head_candidates(int64_t vocab_size) {
  const int64_t share = vocab_size / 64;
  return share < 16 ? 16 : share < kMostCandidates ? static_cast<int32_t>(share) : kMostCandidates;
}

struct LMHeadArgs {
  const void* hidden;  // [B, H], rows `hidden_stride` elements apart
  int64_t hidden_stride;
  const void* weight;  // [V, H]; null: in `quantized`
  const QuantizedPanels* quantized;
  int64_t weight_stride;
  const float* bias;    // [V] or null
  int64_t hidden_size;  // H
  Dtype dtype;          // of hidden, and of a weight that is not quantised
  Dtype round_logits;  // logits are rounded to it before anything reads them; float32: they are not
  ConfidenceArgs scores;  // logits.data is null; `sample` is not
};

// Rows of hidden as the products read them: words, filled up with zeros to whole registers.
struct HeadRows {
  float* words;
  int64_t stride;
  const QuantizedRows* int8_rows;  // the same in 8 bits, where the weights want them so; or null
};

// What is kept of one row.
struct HeadState {
  BlockRecord* records;  // [blocks]
  float* tile_masses;    // [blocks, kTilesPerBlock], relative to the block's largest logit
  uint64_t* keys;        // [head_capacity()]
  int32_t count;
};

// What the merge of several shards of a vocabulary needs of the rows of one shard.
struct ShardSummary {
  float* top;     // [B] the largest logit
  double* sums;   // [B, 3] of 2^y, of 2^y * y, of 2^y at the sampling temperature
  int32_t* infs;  // [B] how many logits are +inf
  int32_t* nans;  // [B] 1: a logit is NaN
  float* logits;  // [B, candidates] the largest, in descending order; -inf: no token
  int32_t* ids;   // [B, candidates]; -1: no token
  int32_t candidates;
};

inline int32_t head_capacity(const ConfidenceArgs& args) {
  const int32_t drawn = head_candidates(args.logits.vocab_size);
  const int32_t most = args.top_k > drawn ? args.top_k : drawn;
  return most < args.logits.vocab_size ? most : static_cast<int32_t>(args.logits.vocab_size);
}

// float32 words per row of hidden, the same for every instruction set.
inline int64_t head_row_words(int64_t hidden_size) { return (hidden_size + 31) / 32 * 32; }

#define MF_DECLARE(isa)                                                                         \
  namespace isa {                                                                               \
  void lm_head_load_row(const LMHeadArgs&, int64_t row, const HeadRows&);                       \
  /* logits[r * stride + v - begin] of rows [row_begin, row_end) and tokens [begin, end) */     \
  void lm_head_logits(const LMHeadArgs&, const HeadRows&, int64_t row_begin, int64_t row_end,   \
                      int64_t begin, int64_t end, float* logits, int64_t stride);               \
  /* Blocks [begin, end) of one row, called in ascending order; x: the first block's logits */  \
  void lm_head_scan(const LMHeadArgs&, int64_t row, int64_t begin, int64_t end, const float* x, \
                    HeadState*);                                                                \
  /* Draws and scores. False: all logits of the row are needed, and nothing was written */      \
  bool lm_head_finish(const LMHeadArgs&, int64_t row, const HeadRows&, HeadState*);             \
  void lm_head_summarize(const LMHeadArgs&, int64_t row, HeadState*, const ShardSummary&);      \
  }
MF_FOR_EACH_ISA(MF_DECLARE)
#undef MF_DECLARE

}  // namespace marco_fast
