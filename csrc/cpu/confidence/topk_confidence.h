// topk_confidence and sample_confidence: arguments and entry points of each instruction set.
//
// One pass over logits [B, V]: per row the k largest, the softmax normaliser and the confidence of
// a token, which is given or drawn. Semantics: marco_fast/ops/reference.py.
//
// A row is cut into chunks of 4096 entries, from V alone, whose records are folded in chunk order:
// a row's result is the same bits in any batch and for any number of threads. Work is dealt out by
// chunks: scan() gives each thread one range of all rows' chunks and finishes the rows that lie
// inside it; finish_split() then finishes the rows that two or more threads share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtypes.h"
#include "base/isa.h"

namespace marco_fast {

inline constexpr int kChunk = 4096;
inline constexpr float kGreedyTemperature = 1e-5f;  // a sampling temperature below it is argmax

enum StatusBit : int32_t {
  kStatusNan = 1,
  kStatusInf = 2,
  kStatusEmpty = 4,
};

// What one chunk adds to its row: sum = sum of e^((z - max) / T), weighted = sum of
// e^((z - max) / T) * log2 of itself, sampling_sum as sum at the sampling temperature.
struct ChunkRecord {
  float max;  // NaN read as -inf
  float sum;
  float weighted;
  float sampling_sum;
  int32_t infs;  // entries that are +inf; then max is +inf and the sums are `infs`
  int32_t nan;
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
  const float* temperature;   // [B]
  const float* top_p;         // [B], 1: off
  const float* min_p;         // [B], 0: off
  const int32_t* top_k;       // [B], 0: off
  const int64_t* seeds;       // [B]
  const int64_t* positions;   // [B]
  int64_t* path_sums;         // [B] or null, units of 2^-40
  int32_t* path_counts;       // [B] or null
  const uint8_t* active;      // [B] or null: which rows add to their path
  int32_t* token_ids;         // [B], output
  float* entropy;             // [B], output
  bool tempered;              // score softmax(z / temperature) instead of softmax(z)
};

struct ConfidenceArgs {
  RowsView logits;
  int32_t top_k;
  float temperature;       // of the score; not read when `sample` is tempered
  bool include_token;      // denominator "union"
  const void* token_ids;   // [B] int32 or int64 in [0, V); not read when sampling
  bool wide_ids;           // token_ids are int64
  ScoreOutputs out;
  const SampleOptions* sample;  // null: the tokens are given
};

// Scratch of one call, carved out of one allocation.
struct Workspace {
  ChunkRecord* records;  // [B, chunks]
  uint64_t* keys;        // [threads, 3, capacity]: a thread's first and last shared row, own rows
  int32_t* counts;       // [threads, 3]
  int32_t* team;         // [1]: how many threads scan() ran on
  int32_t capacity;      // candidates a row may keep
};

inline int64_t num_chunks(int64_t cols) { return (cols + kChunk - 1) / kChunk; }

inline bool is_filtered(const SampleOptions& options, int64_t row, int64_t cols) {
  const int32_t top_k = options.top_k[row];
  return (top_k > 0 && top_k < cols) || options.top_p[row] < 1.0f || options.min_p[row] > 0.0f;
}

// How many of the largest a filtered draw looks at before it reads the row again: most nuclei lie
// inside them. From the row's own options alone, or a draw would depend on the rest of the batch.
inline int32_t draw_candidates(const SampleOptions& options, int64_t row, int64_t cols) {
  if (!is_filtered(options, row, cols)) return 1;
  const int32_t top_k = options.top_k[row];
  const int32_t wanted = top_k > 16 && top_k <= 128 ? top_k : 16;
  return wanted < cols ? wanted : static_cast<int32_t>(cols);
}

inline size_t workspace_bytes(int64_t rows, int64_t cols, int32_t capacity, int threads) {
  return static_cast<size_t>(rows) * num_chunks(cols) * sizeof(ChunkRecord) +
         static_cast<size_t>(threads) * 3 * (capacity * sizeof(uint64_t) + sizeof(int32_t)) + 64;
}

// `memory` is aligned to 8 bytes and holds workspace_bytes().
inline Workspace carve_workspace(void* memory, int64_t rows, int64_t cols, int32_t capacity,
                                 int threads) {
  Workspace space;
  space.keys = static_cast<uint64_t*>(memory);
  space.records = reinterpret_cast<ChunkRecord*>(space.keys + int64_t{threads} * 3 * capacity);
  space.counts = reinterpret_cast<int32_t*>(space.records + rows * num_chunks(cols));
  space.team = space.counts + threads * 3;
  space.capacity = capacity;
  return space;
}

#define MF_DECLARE(isa)                                                                         \
  namespace isa {                                                                               \
  void confidence_scan(const ConfidenceArgs&, const Workspace&, int thread, int threads);       \
  void confidence_finish_split(const ConfidenceArgs&, const Workspace&, int thread, int threads); \
  }
MF_FOR_EACH_ISA(MF_DECLARE)
#undef MF_DECLARE

}  // namespace marco_fast
