// Drawing a token of a row whose logits were not kept, from what was kept of them.
//
// Included once per instruction set.
#pragma once

#include "base/philox.h"
#include "confidence/finish.h"
#include "confidence/lm_head_logits.h"

namespace marco_fast {
namespace MF_NS {
namespace {

// The mass of each vocabulary tile of a block of n logits, relative to the block's largest; 0 where
// no draw will read it.
inline void sum_tiles(const float* x, int n, const BlockRecord& record, float rate,
                      float* tile_masses) {
  for (int i = 0; i < kTilesPerBlock; ++i) tile_masses[i] = 0.0f;
  if (!(record.max > -kInf) || record.infs > 0) return;
  for_vocab_tiles(x, n, [&](const float* p, int at) {
    Vec mass[kVecs];
    masses(p, set1(record.max), set1(rate), kLowest, mass);
    tile_masses[at / kVocabTile] = sum_lanes(mass);
  });
}

inline bool draws_from_all(const ConfidenceArgs& args, int64_t row) {
  return !is_greedy(args.sample->temperature[row]) &&
         !is_filtered(*args.sample, row, args.logits.vocab_size);
}

// A token and its logit.
struct Drawn {
  int32_t token;
  float logit;
};

// From the whole vocabulary: finds the block and the vocabulary tile that the target falls into,
// then computes the tile's logits again and finds the token.
template <class T>
Drawn draw_from_all(const LMHeadArgs& args, const HeadRows& rows, int64_t row,
                    const HeadState& state, float largest, double u) {
  const float rate = rate_of(args.scores.sample->temperature[row]);
  const int64_t vocab_size = args.scores.logits.vocab_size, blocks = num_vocab_blocks(vocab_size);
  const auto scale_of = [&](int64_t block) {
    const double y = (static_cast<double>(state.records[block].max) - largest) * rate;
    return y >= -126.0 ? std::exp2(y) : 0.0;
  };
  const auto sum_of = [&](int64_t block) {
    double sum = 0.0;
    for (int i = 0; i < kTilesPerBlock; ++i) sum += state.tile_masses[block * kTilesPerBlock + i];
    return sum;
  };
  double total = 0.0;
  for (int64_t block = 0; block < blocks; ++block) total += scale_of(block) * sum_of(block);
  const double target = u * total;
  double before = 0.0, inside = 0.0;
  int64_t tile = -1;
  for (int64_t block = 0; block < blocks; ++block) {
    const double scale = scale_of(block), mass = scale * sum_of(block);
    if (mass == 0.0) continue;
    const bool last = before + mass > target;
    for (int64_t i = block * kTilesPerBlock; i < (block + 1) * kTilesPerBlock; ++i) {
      const double each = scale * state.tile_masses[i];
      if (each == 0.0) continue;
      tile = i;
      inside = (target - before) / scale;
      before += each;
      if (last && before > target) break;
    }
    if (last) break;
  }
  const int64_t first = tile * kVocabTile;
  const int64_t end = first + kVocabTile < vocab_size ? first + kVocabTile : vocab_size;
  float x[kVocabTile];
  logits_of<T>(args, rows, row, row + 1, first, end, x, kVocabTile);
  const float m = state.records[tile / kTilesPerBlock].max;
  const int at = find_mass(x, static_cast<int>(end - first), m, rate, kLowest, inside);
  return {static_cast<int32_t>(first + at), x[at]};
}

// token -1: no logit is above -inf; -2: the draw needs all logits of the row.
template <class T>
Drawn draw(const LMHeadArgs& args, const HeadRows& rows, const ScannedRow& scanned,
           const HeadState& state, const RowSum& scored) {
  const ConfidenceArgs& scores = args.scores;
  const SampleOptions& options = *scores.sample;
  const int64_t b = scanned.b, vocab_size = scores.logits.vocab_size;
  if (scanned.count == 0) return {-1, -kInf};
  if (is_greedy(options.temperature[b]))
    return {key_id(scanned.keys[0]), key_value(scanned.keys[0])};
  if (scored.infs > 0) return {-2, 0.0f};
  const double u = philox_uniform(options.seeds[b], options.positions[b], Purpose::token);
  if (draws_from_all(scores, b)) return draw_from_all<T>(args, rows, b, state, scored.max, u);
  const float rate = rate_of(options.temperature[b]);
  const RowSum sum = needs_sampling_sums(scores, b)
                         ? fold(scanned.records, num_vocab_blocks(vocab_size), rate, true)
                         : scored;
  const Filters filters{options.sample_top_k[b], options.top_p[b],
                        lowest_kept(options, b, sum.max)};
  const int32_t most = head_candidates(vocab_size);
  const int32_t n = scanned.count < most ? scanned.count : most;
  const bool complete = scanned.count == n && (n < head_capacity(scores) || n == vocab_size);
  const int32_t token = draw_from_candidates(scanned.keys, n, complete, sum, rate, filters, u);
  for (int32_t r = 0; r < n; ++r)
    if (key_id(scanned.keys[r]) == token) return {token, key_value(scanned.keys[r])};
  return {-2, 0.0f};
}

}  // namespace
}  // namespace MF_NS
}  // namespace marco_fast
