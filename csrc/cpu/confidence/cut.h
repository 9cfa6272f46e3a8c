// The cut of a row for top-p and top-k, where the nucleus is larger than the row's candidates.
//
// Included once per instruction set.
#pragma once

#include "confidence/scan.h"

namespace marco_fast {
namespace MF_NS {

// A cut keeps the logits above `value`, and those equal to it whose id is at most `last_id`.
struct Cut {
  float value = kLowest;
  int32_t last_id = std::numeric_limits<int32_t>::max();
};

struct Filters {
  int64_t sample_top_k;  // 0: off
  float top_p;           // 1: off
  double lowest;         // the smallest logit that min_p keeps; -inf: off
};

template <class T>
struct Row {
  const T* x;
  int64_t vocab_size;
  RowSum sum;  // of the sampling distribution
  float rate;  // log2(e) / sampling temperature
  BlockRecord* records;
  bool score_sums;  // the records' sum at this rate is `sum`; else it is `sampling_sum`

  int64_t blocks() const { return num_vocab_blocks(vocab_size); }
  int block_size(int64_t block) const {
    const int64_t left = vocab_size - block * kVocabBlock;
    return static_cast<int>(left < kVocabBlock ? left : kVocabBlock);
  }
};

// One level of the search for a cut: count and mass of the logits, by the next digit of their key.
struct Histogram {
  static constexpr int kBins = 2048;
  int32_t count[kBins];
  double mass[kBins];
};

// Fills the histogram with the logits >= limit whose key agrees with `prefix` above the lowest
// `shift + bits` bits. The largest keys are in bin 0.
template <class T>
inline void add_level(const Row<T>& row, float limit, uint32_t prefix, int shift, int bits,
                      Histogram* histogram) {
  std::memset(histogram, 0, sizeof(Histogram));
  const int above = shift + bits;
  const uint32_t mask = (1u << bits) - 1;
  const uint32_t first_key = above < 32 ? prefix << above : ordered(kLowest);
  const uint32_t last_key = above < 32 ? first_key | ((1u << above) - 1) : ordered(kInf);
  const float first = from_ordered(first_key), last = from_ordered(last_key);  // may be NaN
  if (first > limit) limit = first;
  const Vec below = set1(std::nextafter(limit, -kInf)), most = set1(last);
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (row.records[block].max < limit) continue;
    const T* x = row.x + block * kVocabBlock;
    for_vocab_tiles(x, row.block_size(block), [&](const T* p, int) {
      for (int j = 0; j < kVecs; ++j) {
        const T* lane = p + j * Vec::kLanes;
        const Vec v = load(lane);
        uint32_t hits = greater_mask(v, below) & ~greater_mask(v, most);
        if (hits == 0) continue;
        float each[Vec::kLanes];
        store(each, exp2_nonpositive(mul(sub(v, set1(row.sum.max)), set1(row.rate))));
        for (; hits != 0; hits &= hits - 1) {
          const int i = __builtin_ctz(hits);
          const uint32_t key = ordered(to_float(lane[i]));
          if (above < 32 && key >> above != prefix) continue;
          const uint32_t bin = mask - (key >> shift & mask);
          histogram->count[bin] += 1;
          histogram->mass[bin] += each[i];
        }
      }
    });
  }
}

// A lower bound of the cut: if all V logits were as small as it, they would have less mass than
// top_p leaves out.
inline float lowest_cut(const RowSum& sum, float rate, double left_out, int64_t vocab_size) {
  if (left_out < 1e-4) return kLowest;  // the sums' own rounding is too close to it
  return static_cast<float>(sum.max + std::log2(0.9 * left_out * sum.sum / vocab_size) / rate);
}

// The id of the `rank`-th logit (from 1) that equals value.
template <class T>
inline int32_t nth_equal(const Row<T>& row, float value, int64_t rank) {
  const Vec wanted = set1(value);
  int32_t id = 0;
  for (int64_t block = 0; block < row.blocks() && rank > 0; ++block) {
    const int32_t first_id = static_cast<int32_t>(block * kVocabBlock);
    for_vocab_tiles(row.x + first_id, row.block_size(block), [&](const T* p, int at) {
      for (int j = 0; j < kVecs && rank > 0; ++j) {
        uint32_t hits = equal_mask(load(p + j * Vec::kLanes), wanted);
        for (; hits != 0 && rank > 0; hits &= hits - 1, --rank)
          id = first_id + at + j * Vec::kLanes + __builtin_ctz(hits);
      }
    });
  }
  return id;
}

// The cut after the fewest logits, in descending order, that are sample_top_k or have the mass
// top_p * sum. Histograms find the digits of the last key, the most significant digit first.
template <class T>
inline Cut find_cut(const Row<T>& row, const Filters& filters) {
  const double target = filters.top_p < 1.0f ? filters.top_p * row.sum.sum : kInf;
  const int64_t most = filters.sample_top_k > 0 ? filters.sample_top_k : row.vocab_size + 1;
  const float limit = lowest_cut(row.sum, row.rate, 1.0 - filters.top_p, row.vocab_size);
  constexpr int kShifts[] = {21, 10, 0}, kBits[] = {11, 11, 10};
  Histogram histogram;
  uint32_t prefix = 0;
  int64_t count = 0;
  double mass = 0.0;
  for (int level = 0; level < 3; ++level) {
    add_level(row, limit, prefix, kShifts[level], kBits[level], &histogram);
    const int bins = 1 << kBits[level];
    int bin = 0, last = -1;
    for (; bin < bins; ++bin) {
      if (histogram.count[bin] == 0) continue;
      last = bin;
      if (count + histogram.count[bin] >= most || mass + histogram.mass[bin] >= target) break;
      count += histogram.count[bin];
      mass += histogram.mass[bin];
    }
    if (bin == bins) {
      // The target was not reached. At the first level everything is kept. Further down the masses
      // of a bin were summed in another order than before, and the whole bin is kept.
      if (level == 0) return {};
      bin = last;
      count -= histogram.count[bin];
      mass -= histogram.mass[bin];
    }
    prefix = prefix << kBits[level] | ((1u << kBits[level]) - 1 - bin);
    if (level < 2) continue;
    const double each = histogram.mass[bin] / histogram.count[bin];
    int64_t ties = 1;
    while (ties < histogram.count[bin] && count + ties < most && mass + ties * each < target)
      ++ties;
    const float value = from_ordered(prefix);
    return {value, nth_equal(row, value, ties)};
  }
  return {};
}

}  // namespace MF_NS
}  // namespace marco_fast
