// topk_confidence and sample_confidence on a CPU; compiled once per instruction set.
#include "topk_confidence.h"

#include "philox.h"
#include "row_draw.h"
#include "row_scan.h"

namespace marco_fast {
namespace MF_NS {
namespace {

bool is_greedy(float temperature) { return !(temperature >= kGreedyTemperature); }

float score_temperature(const ConfidenceArgs& args, int64_t b) {
  return args.sample && args.sample->tempered ? args.sample->temperature[b] : args.temperature;
}

// A sampling distribution that is not the scored one needs sums of its own where the draw reads its
// total: unfiltered, or cut by mass. Filters by rank or by value look at the largest logit alone.
bool needs_sampling_sums(const ConfidenceArgs& args, int64_t b) {
  const SampleOptions* sample = args.sample;
  if (!sample || is_greedy(sample->temperature[b])) return false;
  if (sample->temperature[b] == score_temperature(args, b)) return false;
  return sample->top_p[b] < 1.0f || !is_filtered(*sample, b, args.logits.cols);
}

Rates rates_of_row(const ConfidenceArgs& args, int64_t b) {
  Rates rates;
  rates.score = rate_of(score_temperature(args, b));
  rates.sampling = needs_sampling_sums(args, b) ? rate_of(args.sample->temperature[b]) : 0.0f;
  rates.weighted = args.sample != nullptr;
  return rates;
}

int32_t row_capacity(const ConfidenceArgs& args, int64_t b) {
  if (!args.sample) return args.top_k;
  const int32_t drawn = draw_candidates(*args.sample, b, args.logits.cols);
  return drawn > args.top_k ? drawn : args.top_k;
}

// Everything that is known of a row once its chunks have been read.
struct ScannedRow {
  int64_t b;
  ChunkRecord* records;
  const uint64_t* keys;  // best first
  int32_t count;
};

// ln of the probability of a logit: (z - max) / T - ln(sum), in an order that keeps small terms.
double logprob(float z, const RowSum& sum, double temperature, double log_sum) {
  if (z == -kInf || z != z || sum.sum == 0.0) return -kInf;
  if (sum.infs > 0) return z == kInf ? -log_sum : -static_cast<double>(kInf);
  return (static_cast<double>(z) - sum.max) / temperature - log_sum;
}

double mass_of(float z, const RowSum& sum, double temperature) {
  if (sum.infs > 0) return z == kInf ? 1.0 : 0.0;
  if (z == -kInf || z != z || sum.sum == 0.0) return 0.0;
  return std::exp((static_cast<double>(z) - sum.max) / temperature);
}

float score(const ConfidenceArgs& args, const ScannedRow& row, const RowSum& sum,
            float token_logit) {
  const ScoreOutputs& out = args.out;
  const double temperature = score_temperature(args, row.b);
  const double log_sum = std::log(sum.sum);
  const int32_t k = args.top_k, valid = row.count < k ? row.count : k;
  double denominator = 0.0;
  for (int32_t r = 0; r < k; ++r) {
    const float z = r < valid ? key_value(row.keys[r]) : -kInf;
    out.topk_ids[row.b * k + r] = r < valid ? key_id(row.keys[r]) : -1;
    out.topk_logprobs[row.b * k + r] =
        static_cast<float>(logprob(z, sum, temperature, log_sum));
    denominator += mass_of(z, sum, temperature);
  }
  const double mass = mass_of(token_logit, sum, temperature);
  if (args.include_token && valid == k && token_logit < key_value(row.keys[k - 1]))
    denominator += mass;
  const float confidence = denominator > 0.0 ? static_cast<float>(mass / denominator) : 0.0f;
  out.confidence[row.b] = confidence;
  out.token_logprobs[row.b] = static_cast<float>(logprob(token_logit, sum, temperature, log_sum));
  out.lse[row.b] = sum.infs > 0       ? kInf
                   : sum.sum == 0.0 ? -kInf
                                    : static_cast<float>(sum.max / temperature + log_sum);
  return confidence;
}

int32_t status_of(const ScannedRow& row, int64_t chunks) {
  int32_t status = row.count == 0 ? kStatusEmpty : 0;
  for (int64_t c = 0; c < chunks; ++c)
    status |= (row.records[c].nan ? kStatusNan : 0) | (row.records[c].infs ? kStatusInf : 0);
  return status;
}

template <class T>
int32_t draw(const ConfidenceArgs& args, const ScannedRow& scanned, const T* x,
             const RowSum& scored) {
  const SampleOptions& options = *args.sample;
  const int64_t b = scanned.b, cols = args.logits.cols;
  if (scanned.count == 0) return -1;
  const float temperature = options.temperature[b];
  if (is_greedy(temperature)) return key_id(scanned.keys[0]);
  const bool own_sums = needs_sampling_sums(args, b);
  const float rate = rate_of(temperature);
  const RowSum sum =
      own_sums ? fold(scanned.records, num_chunks(cols), rate, true) : scored;
  const Row<T> row{x, cols, sum, rate, scanned.records, !own_sums};
  const double u = philox_uniform(options.seeds[b], options.positions[b], Purpose::token);
  const double lowest =
      options.min_p[b] > 0.0f
          ? sum.max + temperature * std::log(static_cast<double>(options.min_p[b]))
          : -static_cast<double>(kInf);
  const Filters filters{options.top_k[b], options.top_p[b], lowest};
  if (sum.infs > 0) return draw_among_infs(row, filters, u);
  if (!is_filtered(options, b, cols)) return draw_by_id(row, {}, true, u);
  const int32_t looked_at = draw_candidates(options, b, cols);
  const int32_t n = scanned.count < looked_at ? scanned.count : looked_at;
  const bool complete = scanned.count == n && (n < row_capacity(args, b) || n == cols);
  const int32_t token = draw_from_candidates(scanned.keys, n, complete, sum, rate, filters, u);
  if (token >= 0) return token;
  Cut cut;
  if (filters.top_k > 0 || filters.top_p < 1.0f) cut = find_cut(row, filters);
  if (lowest > cut.value) {
    cut.value = static_cast<float>(lowest);
    if (cut.value < lowest) cut.value = std::nextafter(cut.value, kInf);
    cut.last_id = std::numeric_limits<int32_t>::max();
  }
  return draw_by_id(row, cut, false, u);
}

// ln(sum) - E[ln of a token's mass]; rounding must not make it negative.
float entropy(const RowSum& sum) {
  if (sum.sum == 0.0) return 0.0f;
  const double nats = std::log(sum.sum) - 0.6931471805599453 * sum.weighted / sum.sum;
  return nats > 0.0 ? static_cast<float>(nats) : 0.0f;
}

void add_to_path(const SampleOptions& options, int64_t b, float confidence) {
  if (options.active && !options.active[b]) return;
  if (options.path_sums) options.path_sums[b] += std::llrint(confidence * 0x1p40);
  if (options.path_counts) options.path_counts[b] += 1;
}

int64_t given_token(const ConfidenceArgs& args, int64_t b) {
  return args.wide_ids ? static_cast<const int64_t*>(args.token_ids)[b]
                       : static_cast<const int32_t*>(args.token_ids)[b];
}

template <class T>
void finish_row(const ConfidenceArgs& args, const ScannedRow& row) {
  const int64_t chunks = num_chunks(args.logits.cols);
  const T* x = static_cast<const T*>(args.logits.data) + row.b * args.logits.stride;
  const Rates rates = rates_of_row(args, row.b);
  const RowSum sum = fold(row.records, chunks, rates.score, false);
  args.out.status[row.b] = status_of(row, chunks);
  const int64_t token = args.sample ? draw(args, row, x, sum) : given_token(args, row.b);
  const float confidence = score(args, row, sum, token >= 0 ? to_float(x[token]) : -kInf);
  if (!args.sample) return;
  args.sample->token_ids[row.b] = static_cast<int32_t>(token);
  args.sample->entropy[row.b] = entropy(sum);
  add_to_path(*args.sample, row.b, confidence);
}

struct Range {
  int64_t begin, end;
};
// Thread i's share of all rows' chunks.
Range range_of(const ConfidenceArgs& args, int thread, int threads) {
  const int64_t units = args.logits.rows * num_chunks(args.logits.cols);
  return {units * thread / threads, units * (thread + 1) / threads};
}

uint64_t* slot_keys(const Workspace& space, int thread, int slot) {
  return space.keys + (int64_t{thread} * 3 + slot) * space.capacity;
}

template <class T>
void scan(const ConfidenceArgs& args, const Workspace& space, int thread, int threads) {
  const int64_t chunks = num_chunks(args.logits.cols);
  const Range range = range_of(args, thread, threads);
  for (int64_t unit = range.begin; unit < range.end;) {
    const int64_t b = unit / chunks, begin = unit - b * chunks;
    const int64_t end = range.end - b * chunks < chunks ? range.end - b * chunks : chunks;
    const bool whole = begin == 0 && end == chunks;
    const int slot = whole ? 2 : unit == range.begin ? 0 : 1;
    const T* x = static_cast<const T*>(args.logits.data) + b * args.logits.stride;
    const Rates rates = rates_of_row(args, b);
    Candidates best(slot_keys(space, thread, slot), row_capacity(args, b));
    ChunkRecord* records = space.records + b * chunks;
    for (int64_t c = begin; c < end; ++c) {
      const int64_t left = args.logits.cols - c * kChunk;
      scan_chunk(x + c * kChunk, static_cast<int>(left < kChunk ? left : kChunk),
                 static_cast<int32_t>(c * kChunk), rates, best, records + c);
    }
    space.counts[thread * 3 + slot] = best.count();
    if (whole) {
      best.sort();
      finish_row<T>(args, {b, records, slot_keys(space, thread, slot), best.count()});
    }
    unit = b * chunks + end;
  }
}

// Finishes the row that `first` is the first of several threads to read, if there is one: the
// candidates of the others are pushed into those of `first`.
template <class T>
void finish_split(const ConfidenceArgs& args, const Workspace& space, int first, int team) {
  const int64_t chunks = num_chunks(args.logits.cols);
  const Range range = range_of(args, first, team);
  if (range.begin == range.end || range.end % chunks == 0) return;
  const int64_t b = range.end / chunks;
  if (range.begin > b * chunks) return;
  const int slot = range.begin == b * chunks ? 0 : 1;
  uint64_t* keys = slot_keys(space, first, slot);
  Candidates best(keys, row_capacity(args, b));
  best.adopt(space.counts[first * 3 + slot]);
  for (int thread = first + 1; thread < team; ++thread) {
    if (range_of(args, thread, team).begin >= (b + 1) * chunks) break;
    const Range theirs = range_of(args, thread, team);
    if (theirs.begin == theirs.end) continue;
    const uint64_t* others = slot_keys(space, thread, 0);
    for (int32_t i = 0; i < space.counts[thread * 3]; ++i) best.push(others[i]);
  }
  best.sort();
  finish_row<T>(args, {b, space.records + b * chunks, keys, best.count()});
}

}  // namespace

void confidence_scan(const ConfidenceArgs& args, const Workspace& space, int thread, int threads) {
  if (thread == 0) *space.team = threads;
  switch (args.logits.dtype) {
    case Dtype::f32: return scan<float>(args, space, thread, threads);
    case Dtype::bf16: return scan<bf16>(args, space, thread, threads);
    case Dtype::f16: return scan<f16>(args, space, thread, threads);
  }
}

void confidence_finish_split(const ConfidenceArgs& args, const Workspace& space, int thread,
                             int threads) {
  const int team = *space.team;
  for (int first = thread; first < team; first += threads) {
    switch (args.logits.dtype) {
      case Dtype::f32: finish_split<float>(args, space, first, team); break;
      case Dtype::bf16: finish_split<bf16>(args, space, first, team); break;
      case Dtype::f16: finish_split<f16>(args, space, first, team); break;
    }
  }
}

}  // namespace MF_NS
}  // namespace marco_fast
