// lm_head_confidence on a CPU; compiled once per instruction set.
#include "confidence/lm_head_confidence.h"

#include "confidence/lm_head_draw.h"
#include "confidence/lm_head_logits.h"

namespace marco_fast {
namespace MF_NS {
namespace {

template <class T>
bool finish(const LMHeadArgs& args, int64_t row, const HeadRows& rows, HeadState* state) {
  const ConfidenceArgs& scores = args.scores;
  const int64_t blocks = num_vocab_blocks(scores.logits.vocab_size);
  Candidates best(state->keys, head_capacity(scores));
  best.adopt(state->count);
  best.sort();
  const ScannedRow scanned{row, state->records, state->keys, state->count};
  const RowSum sum = fold(state->records, blocks, rates_of_row(scores, row).score, false);
  const Drawn drawn = draw<T>(args, rows, scanned, *state, sum);
  if (drawn.token == -2) return false;
  scores.out.status[row] = status_of(scanned, blocks);
  const float confidence = score(scores, scanned, sum, drawn.logit);
  scores.sample->token_ids[row] = drawn.token;
  scores.sample->entropy[row] = entropy(sum);
  add_to_path(*scores.sample, row, confidence);
  return true;
}

template <class T>
void load_row(const LMHeadArgs& args, int64_t row, const HeadRows& rows) {
  const T* from = static_cast<const T*>(args.hidden) + row * args.hidden_stride;
  float* to = rows.words + row * rows.stride;
  std::memset(to, 0, sizeof(float) * rows.stride);
  if (rows.int8_rows) int8_row(from, args.dtype, args.hidden_size, row, *rows.int8_rows);
  if constexpr (kPairs<T>) {
    std::memcpy(to, from, sizeof(T) * args.hidden_size);
  } else {
    for (int64_t i = 0; i < args.hidden_size; ++i) to[i] = to_float(from[i]);
  }
}

}  // namespace

void lm_head_load_row(const LMHeadArgs& args, int64_t row, const HeadRows& rows) {
  return with_type(args.dtype,
                   [&](auto type) { return load_row<decltype(type)>(args, row, rows); });
}

void lm_head_logits(const LMHeadArgs& args, const HeadRows& rows, int64_t row_begin,
                    int64_t row_end, int64_t begin, int64_t end, float* logits, int64_t stride) {
  return with_type(args.dtype, [&](auto type) {
    return logits_of<decltype(type)>(args, rows, row_begin, row_end, begin, end, logits, stride);
  });
}

void lm_head_scan(const LMHeadArgs& args, int64_t row, int64_t begin, int64_t end, const float* x,
                  HeadState* state) {
  const ConfidenceArgs& scores = args.scores;
  const Rates rates = rates_of_row(scores, row);
  Candidates best(state->keys, head_capacity(scores));
  best.adopt(state->count);
  for (int64_t block = begin; block < end; ++block, x += kVocabBlock) {
    const int64_t left = scores.logits.vocab_size - block * kVocabBlock;
    const int n = static_cast<int>(left < kVocabBlock ? left : kVocabBlock);
    scan_block(x, n, static_cast<int32_t>(block * kVocabBlock), rates, best,
               state->records + block);
    if (draws_from_all(scores, row))
      sum_tiles(x, n, state->records[block], rate_of(scores.sample->temperature[row]),
                state->tile_masses + block * kTilesPerBlock);
  }
  state->count = best.count();
}

void lm_head_summarize(const LMHeadArgs& args, int64_t row, HeadState* state,
                       const ShardSummary& out) {
  const ConfidenceArgs& scores = args.scores;
  const int64_t blocks = num_vocab_blocks(scores.logits.vocab_size);
  Candidates best(state->keys, head_capacity(scores));
  best.adopt(state->count);
  best.sort();
  const Rates rates = rates_of_row(scores, row);
  const RowSum sum = fold(state->records, blocks, rates.score, false);
  const bool same = score_temperature(scores, row) == scores.sample->temperature[row];
  double* sums = out.sums + row * 3;
  out.top[row] = sum.max;
  sums[0] = sum.sum, sums[1] = sum.weighted;
  sums[2] = same                     ? sum.sum
            : rates.sampling != 0.0f ? fold(state->records, blocks, rates.sampling, true).sum
                                     : 0.0;
  out.infs[row] = static_cast<int32_t>(sum.infs);
  out.nans[row] = 0;
  for (int64_t i = 0; i < blocks; ++i) out.nans[row] |= state->records[i].nan ? 1 : 0;
  for (int32_t i = 0; i < out.candidates; ++i) {
    const int64_t at = row * out.candidates + i;
    out.logits[at] = i < state->count ? key_value(state->keys[i]) : -kInf;
    out.ids[at] = i < state->count ? key_id(state->keys[i]) : -1;
  }
}

bool lm_head_finish(const LMHeadArgs& args, int64_t row, const HeadRows& rows, HeadState* state) {
  return with_type(args.dtype,
                   [&](auto type) { return finish<decltype(type)>(args, row, rows, state); });
}

}  // namespace MF_NS
}  // namespace marco_fast
