// topk_confidence and sample_confidence: arguments and entry points of each instruction set.
//
// One pass over logits [B, V] gives, per row, the k largest, the softmax normaliser and the
// confidence of a token, which is given or drawn. The reference in marco_fast/ops defines them.
//
// A row is cut into blocks of 4096 logits. The cut depends on V alone, and the blocks' records are
// folded in the order of the blocks, so a row has the same bits in any batch and on any number of
// threads. Threads share the work by blocks: confidence_scan gives each thread one range of the
// blocks of all rows, and finishes the rows that lie inside one range; confidence_finish_split then
// finishes the rows that two or more threads share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtypes.h"
#include "base/isa.h"

namespace marco_fast {

inline constexpr int kVocabBlock = 4096;            // logits that one record sums up
inline constexpr int kVocabTile = 64;               // logits that are summed lane by lane
inline constexpr float kGreedyTemperature = 1e-5f;  // below it the token is the largest logit

enum StatusBit : int32_t {
  kStatusNan = 1,
  kStatusInf = 2,
  kStatusEmpty = 4,
};

// Logits [rows, vocab_size]; `stride` elements lie between the beginnings of two rows.
struct Logits {
  const void* data;
  Dtype dtype;
  int64_t rows;
  int64_t vocab_size;
  int64_t stride;
};

// What one vocabulary block adds to its row.
struct BlockRecord {
  float max;           // NaN counts as -inf
  float sum;           // of e = e^((z - max) / T)
  float weighted;      // of e * log2(e)
  float sampling_sum;  // as `sum`, at the sampling temperature
  int32_t infs;        // how many logits are +inf; if any, max is +inf and the sums are `infs`
  int32_t nan;         // 1: a logit is NaN
};

struct ScoreOutputs {
  float* confidence;      // [B]
  float* token_logprobs;  // [B]
  float* lse;             // [B]
  float* topk_logprobs;   // [B, k]
  int32_t* topk_ids;      // [B, k]
  int32_t* status;        // [B]
};

struct SampleOptions {
  const float* temperature;     // [B]
  const float* top_p;           // [B], 1: off
  const float* min_p;           // [B], 0: off
  const int32_t* sample_top_k;  // [B], 0: off
  const int64_t* seeds;         // [B]
  const int64_t* positions;     // [B]
  int64_t* path_sums;           // [B] or null, units of 2^-40
  int32_t* path_counts;         // [B] or null
  const uint8_t* active;        // [B] or null: which rows add to their path
  int32_t* token_ids;           // [B], output
  float* entropy;               // [B], output
  bool tempered;                // the scores are of softmax(z / temperature), not of softmax(z)
};

struct ConfidenceArgs {
  Logits logits;
  int32_t top_k;
  float temperature;      // of the scores; not read where `sample` is tempered
  bool include_token;     // the token counts in the denominator even outside the top k
  const void* token_ids;  // [B] int32 or int64 in [0, V); not read where tokens are drawn
  bool wide_ids;          // token_ids are int64
  ScoreOutputs out;
  const SampleOptions* sample;  // null: the tokens are given
};

// Memory of one call, cut out of one allocation.
struct Workspace {
  BlockRecord* records;  // [B, blocks]
  // [threads, 3, capacity]: of a thread's first row, of its last row, of a row that it has alone
  uint64_t* keys;
  int32_t* counts;   // [threads, 3]
  int32_t* team;     // [1]: on how many threads the scan ran
  int32_t capacity;  // candidates that a row may keep
};

inline int64_t num_vocab_blocks(int64_t vocab_size) {
  return (vocab_size + kVocabBlock - 1) / kVocabBlock;
}

inline bool is_filtered(const SampleOptions& options, int64_t row, int64_t vocab_size) {
  const int32_t top_k = options.sample_top_k[row];
  return (top_k > 0 && top_k < vocab_size) || options.top_p[row] < 1.0f ||
         options.min_p[row] > 0.0f;
}

// How many of the largest logits a filtered draw looks at before it reads the row again: they hold
// most nuclei. The number follows from the row's own options, so no draw depends on the batch.
inline int32_t draw_candidates(const SampleOptions& options, int64_t row, int64_t vocab_size) {
  if (!is_filtered(options, row, vocab_size)) return 1;
  const int32_t top_k = options.sample_top_k[row];
  const int32_t wanted = top_k > 16 && top_k <= 128 ? top_k : 16;
  return wanted < vocab_size ? wanted : static_cast<int32_t>(vocab_size);
}

inline size_t workspace_bytes(int64_t rows, int64_t vocab_size, int32_t capacity, int threads) {
  return static_cast<size_t>(rows) * num_vocab_blocks(vocab_size) * sizeof(BlockRecord) +
         static_cast<size_t>(threads) * 3 * (capacity * sizeof(uint64_t) + sizeof(int32_t)) + 64;
}

// `memory` is aligned to 8 bytes and holds workspace_bytes().
inline Workspace carve_workspace(void* memory, int64_t rows, int64_t vocab_size, int32_t capacity,
                                 int threads) {
  Workspace space;
  space.keys = static_cast<uint64_t*>(memory);
  space.records = reinterpret_cast<BlockRecord*>(space.keys + int64_t{threads} * 3 * capacity);
  space.counts = reinterpret_cast<int32_t*>(space.records + rows * num_vocab_blocks(vocab_size));
  space.team = space.counts + threads * 3;
  space.capacity = capacity;
  return space;
}

#define MF_DECLARE(isa)                                                                           \
  namespace isa {                                                                                 \
  void confidence_scan(const ConfidenceArgs&, const Workspace&, int thread, int threads);         \
  void confidence_finish_split(const ConfidenceArgs&, const Workspace&, int thread, int threads); \
  }
MF_FOR_EACH_ISA(MF_DECLARE)
#undef MF_DECLARE

}  // namespace marco_fast
