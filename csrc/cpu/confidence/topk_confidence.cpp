// topk_confidence and sample_confidence on a CPU; compiled once per instruction set.
#include "confidence/topk_confidence.h"

#include "base/philox.h"
#include "confidence/finish.h"

namespace marco_fast {
namespace MF_NS {
namespace {

template <class T>
int32_t draw(const ConfidenceArgs& args, const ScannedRow& scanned, const T* x,
             const RowSum& scored) {
  const SampleOptions& options = *args.sample;
  const int64_t b = scanned.b, vocab_size = args.logits.vocab_size;
  if (scanned.count == 0) return -1;
  const float temperature = options.temperature[b];
  if (is_greedy(temperature)) return key_id(scanned.keys[0]);
  const bool own_sums = needs_sampling_sums(args, b);
  const float rate = rate_of(temperature);
  const RowSum sum =
      own_sums ? fold(scanned.records, num_vocab_blocks(vocab_size), rate, true) : scored;
  const Row<T> row{x, vocab_size, sum, rate, scanned.records, !own_sums};
  const double u = philox_uniform(options.seeds[b], options.positions[b], Purpose::token);
  const double lowest = lowest_kept(options, b, sum.max);
  const Filters filters{options.sample_top_k[b], options.top_p[b], lowest};
  if (sum.infs > 0) return draw_among_infs(row, filters, u);
  if (!is_filtered(options, b, vocab_size)) return draw_by_id(row, {}, true, u);
  const int32_t looked_at = draw_candidates(options, b, vocab_size);
  const int32_t n = scanned.count < looked_at ? scanned.count : looked_at;
  const bool complete = scanned.count == n && (n < row_capacity(args, b) || n == vocab_size);
  const int32_t token = draw_from_candidates(scanned.keys, n, complete, sum, rate, filters, u);
  if (token >= 0) return token;
  Cut cut;
  if (filters.sample_top_k > 0 || filters.top_p < 1.0f) cut = find_cut(row, filters);
  if (lowest > cut.value) {
    cut.value = static_cast<float>(lowest);
    if (cut.value < lowest) cut.value = std::nextafter(cut.value, kInf);
    cut.last_id = std::numeric_limits<int32_t>::max();
  }
  return draw_by_id(row, cut, false, u);
}

int64_t given_token(const ConfidenceArgs& args, int64_t b) {
  return args.wide_ids ? static_cast<const int64_t*>(args.token_ids)[b]
                       : static_cast<const int32_t*>(args.token_ids)[b];
}

template <class T>
void finish_row(const ConfidenceArgs& args, const ScannedRow& row) {
  const int64_t blocks = num_vocab_blocks(args.logits.vocab_size);
  const T* x = static_cast<const T*>(args.logits.data) + row.b * args.logits.stride;
  const Rates rates = rates_of_row(args, row.b);
  const RowSum sum = fold(row.records, blocks, rates.score, false);
  args.out.status[row.b] = status_of(row, blocks);
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
// One thread's share of the blocks of all rows.
Range range_of(const ConfidenceArgs& args, int thread, int threads) {
  const int64_t units = args.logits.rows * num_vocab_blocks(args.logits.vocab_size);
  return {units * thread / threads, units * (thread + 1) / threads};
}

// `which`: 0 and 1 are the thread's first and last row, 2 a row that it reads alone.
uint64_t* keys_of(const Workspace& space, int thread, int which) {
  return space.keys + (int64_t{thread} * 3 + which) * space.capacity;
}

template <class T>
void scan(const ConfidenceArgs& args, const Workspace& space, int thread, int threads) {
  const int64_t blocks = num_vocab_blocks(args.logits.vocab_size);
  const Range range = range_of(args, thread, threads);
  for (int64_t unit = range.begin; unit < range.end;) {
    const int64_t b = unit / blocks, begin = unit - b * blocks;
    const int64_t end = range.end - b * blocks < blocks ? range.end - b * blocks : blocks;
    const bool whole = begin == 0 && end == blocks;
    const int which = whole ? 2 : unit == range.begin ? 0 : 1;
    const T* x = static_cast<const T*>(args.logits.data) + b * args.logits.stride;
    const Rates rates = rates_of_row(args, b);
    Candidates best(keys_of(space, thread, which), row_capacity(args, b));
    BlockRecord* records = space.records + b * blocks;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t left = args.logits.vocab_size - block * kVocabBlock;
      scan_block(x + block * kVocabBlock, static_cast<int>(left < kVocabBlock ? left : kVocabBlock),
                 static_cast<int32_t>(block * kVocabBlock), rates, best, records + block);
    }
    space.counts[thread * 3 + which] = best.count();
    if (whole) {
      best.sort();
      finish_row<T>(args, {b, records, keys_of(space, thread, which), best.count()});
    }
    unit = b * blocks + end;
  }
}

// Finishes the row whose first block, but not whose last, thread `first` has read; if there is one.
// The candidates that other threads found are pushed into those of `first`.
template <class T>
void finish_split(const ConfidenceArgs& args, const Workspace& space, int first, int team) {
  const int64_t blocks = num_vocab_blocks(args.logits.vocab_size);
  const Range range = range_of(args, first, team);
  if (range.begin == range.end || range.end % blocks == 0) return;
  const int64_t b = range.end / blocks;
  if (range.begin > b * blocks) return;
  const int which = range.begin == b * blocks ? 0 : 1;
  uint64_t* keys = keys_of(space, first, which);
  Candidates best(keys, row_capacity(args, b));
  best.adopt(space.counts[first * 3 + which]);
  for (int thread = first + 1; thread < team; ++thread) {
    if (range_of(args, thread, team).begin >= (b + 1) * blocks) break;
    const Range theirs = range_of(args, thread, team);
    if (theirs.begin == theirs.end) continue;
    const uint64_t* others = keys_of(space, thread, 0);
    for (int32_t i = 0; i < space.counts[thread * 3]; ++i) best.push(others[i]);
  }
  best.sort();
  finish_row<T>(args, {b, space.records + b * blocks, keys, best.count()});
}

}  // namespace

void confidence_scan(const ConfidenceArgs& args, const Workspace& space, int thread, int threads) {
  if (thread == 0) *space.team = threads;
  with_type(args.logits.dtype,
            [&](auto type) { scan<decltype(type)>(args, space, thread, threads); });
}

void confidence_finish_split(const ConfidenceArgs& args, const Workspace& space, int thread,
                             int threads) {
  const int team = *space.team;
  with_type(args.logits.dtype, [&](auto type) {
    for (int first = thread; first < team; first += threads)
      finish_split<decltype(type)>(args, space, first, team);
  });
}

}  // namespace MF_NS
}  // namespace marco_fast
