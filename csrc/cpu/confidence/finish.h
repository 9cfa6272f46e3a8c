// The results of a row whose blocks have been read: scores, entropy and what it adds to its path.
//
// Included once per instruction set.
#pragma once

#include "confidence/draw.h"
#include "confidence/scan.h"
#include "confidence/topk_confidence.h"

namespace marco_fast {
namespace MF_NS {

inline bool is_greedy(float temperature) { return !(temperature >= kGreedyTemperature); }

inline float score_temperature(const ConfidenceArgs& args, int64_t b) {
  return args.sample && args.sample->tempered ? args.sample->temperature[b] : args.temperature;
}

// Whether the draw needs sums at the sampling temperature: where that is not the temperature of the
// scores and the draw reads the total mass, because nothing is filtered or top_p cuts by mass.
// Filters by rank or by value look at the largest logit alone.
inline bool needs_sampling_sums(const ConfidenceArgs& args, int64_t b) {
  const SampleOptions* sample = args.sample;
  if (!sample || is_greedy(sample->temperature[b])) return false;
  if (sample->temperature[b] == score_temperature(args, b)) return false;
  return sample->top_p[b] < 1.0f || !is_filtered(*sample, b, args.logits.vocab_size);
}

inline Rates rates_of_row(const ConfidenceArgs& args, int64_t b) {
  Rates rates;
  rates.score = rate_of(score_temperature(args, b));
  rates.sampling = needs_sampling_sums(args, b) ? rate_of(args.sample->temperature[b]) : 0.0f;
  rates.weighted = args.sample != nullptr;
  return rates;
}

inline int32_t row_capacity(const ConfidenceArgs& args, int64_t b) {
  if (!args.sample) return args.top_k;
  const int32_t drawn = draw_candidates(*args.sample, b, args.logits.vocab_size);
  return drawn > args.top_k ? drawn : args.top_k;
}

// What is known of row b when its blocks have been read.
struct ScannedRow {
  int64_t b;
  BlockRecord* records;
  const uint64_t* keys;  // of its candidates, the largest first
  int32_t count;
};

// ln of a logit's probability, (z - max) / T - ln(sum), in an order that keeps the smaller terms.
inline double logprob(float z, const RowSum& sum, double temperature, double log_sum) {
  if (z == -kInf || z != z || sum.sum == 0.0) return -kInf;
  if (sum.infs > 0) return z == kInf ? -log_sum : -static_cast<double>(kInf);
  return (static_cast<double>(z) - sum.max) / temperature - log_sum;
}

inline double mass_of(float z, const RowSum& sum, double temperature) {
  if (sum.infs > 0) return z == kInf ? 1.0 : 0.0;
  if (z == -kInf || z != z || sum.sum == 0.0) return 0.0;
  return std::exp((static_cast<double>(z) - sum.max) / temperature);
}

inline float score(const ConfidenceArgs& args, const ScannedRow& row, const RowSum& sum,
                   float token_logit) {
  const ScoreOutputs& out = args.out;
  const double temperature = score_temperature(args, row.b);
  const double log_sum = std::log(sum.sum);
  const int32_t k = args.top_k, valid = row.count < k ? row.count : k;
  double denominator = 0.0;
  for (int32_t r = 0; r < k; ++r) {
    const float z = r < valid ? key_value(row.keys[r]) : -kInf;
    out.topk_ids[row.b * k + r] = r < valid ? key_id(row.keys[r]) : -1;
    out.topk_logprobs[row.b * k + r] = static_cast<float>(logprob(z, sum, temperature, log_sum));
    denominator += mass_of(z, sum, temperature);
  }
  const double mass = mass_of(token_logit, sum, temperature);
  if (args.include_token && valid == k && token_logit < key_value(row.keys[k - 1]))
    denominator += mass;
  const float confidence = denominator > 0.0 ? static_cast<float>(mass / denominator) : 0.0f;
  out.confidence[row.b] = confidence;
  out.token_logprobs[row.b] = static_cast<float>(logprob(token_logit, sum, temperature, log_sum));
  out.lse[row.b] = sum.infs > 0     ? kInf
                   : sum.sum == 0.0 ? -kInf
                                    : static_cast<float>(sum.max / temperature + log_sum);
  return confidence;
}

inline int32_t status_of(const ScannedRow& row, int64_t blocks) {
  int32_t status = row.count == 0 ? kStatusEmpty : 0;
  for (int64_t i = 0; i < blocks; ++i)
    status |= (row.records[i].nan ? kStatusNan : 0) | (row.records[i].infs ? kStatusInf : 0);
  return status;
}

// The smallest logit that min_p keeps; -inf: min_p is off.
inline double lowest_kept(const SampleOptions& options, int64_t b, float largest) {
  if (!(options.min_p[b] > 0.0f)) return -static_cast<double>(kInf);
  return largest + options.temperature[b] * std::log(static_cast<double>(options.min_p[b]));
}

// In nats: ln(sum) - E[ln of a token's mass]. Rounding must not make it negative.
inline float entropy(const RowSum& sum) {
  if (sum.sum == 0.0) return 0.0f;
  const double nats = std::log(sum.sum) - 0.6931471805599453 * sum.weighted / sum.sum;
  return nats > 0.0 ? static_cast<float>(nats) : 0.0f;
}

inline void add_to_path(const SampleOptions& options, int64_t b, float confidence) {
  if (options.active && !options.active[b]) return;
  if (options.path_sums) options.path_sums[b] += std::llrint(confidence * 0x1p40);
  if (options.path_counts) options.path_counts[b] += 1;
}

}  // namespace MF_NS
}  // namespace marco_fast
