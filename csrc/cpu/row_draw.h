// Drawing a token of a row: by inverse CDF in id order, over the tokens that the filters keep.
//
// Included once per instruction set.
#pragma once

#include "row_scan.h"

namespace marco_fast {
namespace MF_NS {

// Kept are the logits above `value`, and those equal to it with an id up to `last_id`.
struct Cut {
  float value = kLowest;
  int32_t last_id = std::numeric_limits<int32_t>::max();
};

struct Filters {
  int64_t top_k;   // 0: off
  float top_p;     // 1: off
  double lowest;   // min_p as the least logit; -inf: off
};

template <class T>
struct Row {
  const T* x;
  int64_t cols;
  RowSum sum;        // of the sampling distribution
  float rate;        // log2(e) / its temperature
  ChunkRecord* records;
  bool score_sums;   // the records' `sum` is at this rate, not `sampling_sum`

  int64_t chunks() const { return num_chunks(cols); }
  int chunk_size(int64_t c) const {
    const int64_t left = cols - c * kChunk;
    return static_cast<int>(left < kChunk ? left : kChunk);
  }
};

// The masses 2^((x - m) * rate) of 64 entries, 0 where x < limit, is masked or is NaN.
template <class T>
inline void masses(const T* p, Vec m, Vec rate, float limit, Vec (&out)[kVecs]) {
  for (int j = 0; j < kVecs; ++j) {
    const Vec x = load(p + j * Vec::kLanes);
    out[j] = zero_below(x, limit, exp2_nonpositive(mul(sub(x, m), rate)));
  }
}

template <class T>
inline double sum_masses(const T* x, int n, float m, float rate, float limit) {
  Vec sum[kVecs];
  for (int j = 0; j < kVecs; ++j) sum[j] = set1(0.0f);
  for_groups(x, n, [&](const T* p, int) __attribute__((always_inline)) {
    Vec mass[kVecs];
    masses(p, set1(m), set1(rate), limit, mass);
    for (int j = 0; j < kVecs; ++j) sum[j] = add(sum[j], mass[j]);
  });
  return sum_lanes(sum);
}

// The first entry whose cumulative mass exceeds target; where rounding leaves none, the last one with
// any mass (-1: there is none).
template <class T>
inline int find_mass(const T* x, int n, float m, float rate, float limit, double target) {
  double before = 0.0;
  int found = -1, last = -1;
  for_groups(x, n, [&](const T* p, int at) {
    if (found >= 0) return;
    Vec mass[kVecs];
    masses(p, set1(m), set1(rate), limit, mass);
    const double group = sum_lanes(mass);
    if (group == 0.0) return;
    const bool inside = before + group > target;
    float each[kGroup];
    for (int j = 0; j < kVecs; ++j) store(each + j * Vec::kLanes, mass[j]);
    double running = before;
    for (int i = 0; i < kGroup; ++i) {
      if (each[i] == 0.0f) continue;
      last = at + i;
      running += each[i];
      if (inside && running > target) break;
    }
    if (inside) found = last;
    before += group;
  });
  return found >= 0 ? found : last;
}

// The entries of a chunk fall into two runs, up to the cut's last id and after it: each has its limit.
struct Runs {
  int first;           // entries of the first run
  float limits[2];
};
inline Runs runs_of(const Cut& cut, int64_t first_id, int n) {
  const int64_t ties = static_cast<int64_t>(cut.last_id) + 1 - first_id;
  const int first = ties <= 0 ? 0 : ties < n ? static_cast<int>(ties) : n;
  return {first, {cut.value, std::nextafter(cut.value, kInf)}};
}

// The draw for u in [0, 1) from the tokens that the cut keeps. `known`: the records hold the masses
// of whole chunks, and the cut keeps everything.
template <class T>
inline int32_t draw_by_id(const Row<T>& row, const Cut& cut, bool known, double u) {
  const float m = row.sum.max;
  auto chunk_mass = [&](int64_t c) {
    const ChunkRecord& record = row.records[c];
    // An entry whose power underflows has no mass, so a chunk must not have any through it alone.
    if (!((record.max - m) * row.rate >= -126.0f)) return 0.0;
    if (known) {
      const double y = (static_cast<double>(record.max) - m) * row.rate;
      return std::exp2(y) * (row.score_sums ? record.sum : record.sampling_sum);
    }
    const T* x = row.x + c * kChunk;
    const int n = row.chunk_size(c);
    const Runs runs = runs_of(cut, c * kChunk, n);
    return sum_masses(x, runs.first, m, row.rate, runs.limits[0]) +
           sum_masses(x + runs.first, n - runs.first, m, row.rate, runs.limits[1]);
  };
  double total = 0.0;
  for (int64_t c = 0; c < row.chunks(); ++c) {
    const double mass = chunk_mass(c);
    row.records[c].sampling_sum = static_cast<float>(mass);
    total += row.records[c].sampling_sum;
  }
  const double target = u * total;
  double before = 0.0, skipped = 0.0;
  int64_t chosen = -1;
  for (int64_t c = 0; c < row.chunks() && !(before > target); ++c) {
    if (row.records[c].sampling_sum == 0.0f) continue;
    chosen = c;
    skipped = before;
    before += row.records[c].sampling_sum;
  }
  if (chosen < 0) return -1;
  const T* x = row.x + chosen * kChunk;
  const int n = row.chunk_size(chosen);
  const Runs runs = runs_of(cut, chosen * kChunk, n);
  const double inside = target - skipped;
  const double first = sum_masses(x, runs.first, m, row.rate, runs.limits[0]);
  const int32_t id = static_cast<int32_t>(chosen * kChunk);
  int at = -1;
  if (first <= inside)
    at = find_mass(x + runs.first, n - runs.first, m, row.rate, runs.limits[1], inside - first);
  if (at >= 0) return id + runs.first + at;
  return id + find_mass(x, runs.first, m, row.rate, runs.limits[0], inside);
}

// One level of the search for a cut: count and mass of the entries by the next digit of their key.
struct Histogram {
  static constexpr int kBins = 2048;
  int32_t count[kBins];
  double mass[kBins];
};

// Adds every entry >= limit whose key agrees with `prefix` above `shift + bits`; best key in bin 0.
template <class T>
inline void add_level(const Row<T>& row, float limit, uint32_t prefix, int shift, int bits,
                      Histogram* histogram) {
  std::memset(histogram, 0, sizeof(Histogram));
  const int above = shift + bits;
  const uint32_t mask = (1u << bits) - 1;
  const float first = above >= 32 ? kLowest : from_ordered(prefix << above);
  if (first > limit) limit = first;
  const Vec below = set1(std::nextafter(limit, -kInf));
  for (int64_t c = 0; c < row.chunks(); ++c) {
    const T* x = row.x + c * kChunk;
    for_groups(x, row.chunk_size(c), [&](const T* p, int) {
      for (int j = 0; j < kVecs; ++j) {
        const T* lane = p + j * Vec::kLanes;
        const Vec v = load(lane);
        uint32_t hits = greater_mask(v, below);
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

// A logit below which all V together could not hold the mass that top_p leaves out: no cut is there.
inline float lowest_cut(const RowSum& sum, float rate, double left_out, int64_t cols) {
  if (left_out < 1e-4) return kLowest;  // too close to the rounding of the sums
  return static_cast<float>(sum.max + std::log2(0.9 * left_out * sum.sum / cols) / rate);
}

// The id of the `rank`-th (from 1) entry equal to value.
template <class T>
inline int32_t nth_equal(const Row<T>& row, float value, int64_t rank) {
  const Vec wanted = set1(value);
  int32_t id = 0;
  for (int64_t c = 0; c < row.chunks() && rank > 0; ++c) {
    const int32_t first_id = static_cast<int32_t>(c * kChunk);
    for_groups(row.x + first_id, row.chunk_size(c), [&](const T* p, int at) {
      for (int j = 0; j < kVecs && rank > 0; ++j) {
        uint32_t hits = equal_mask(load(p + j * Vec::kLanes), wanted);
        for (; hits != 0 && rank > 0; hits &= hits - 1, --rank)
          id = first_id + at + j * Vec::kLanes + __builtin_ctz(hits);
      }
    });
  }
  return id;
}

// The shortest prefix in rank order that reaches top_k entries or the mass top_p * sum: the digits of
// its last key are found by histograms, most significant first.
template <class T>
inline Cut find_cut(const Row<T>& row, const Filters& filters) {
  const double target = filters.top_p < 1.0f ? filters.top_p * row.sum.sum : kInf;
  const int64_t most = filters.top_k > 0 ? filters.top_k : row.cols + 1;
  const float limit =
      filters.top_p < 1.0f
          ? lowest_cut(row.sum, row.rate, 1.0 - filters.top_p, row.cols)
          : kLowest;
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
      // Not reached: at the first level everything is kept; further down, where the masses of a bin
      // were summed in another order, the whole bin is.
      if (level == 0) return {};
      bin = last;
      count -= histogram.count[bin];
      mass -= histogram.mass[bin];
    }
    prefix = prefix << kBits[level] | ((1u << kBits[level]) - 1 - bin);
    if (level < 2) continue;
    const double each = histogram.mass[bin] / histogram.count[bin];
    int64_t ties = 1;
    while (ties < histogram.count[bin] && count + ties < most && mass + ties * each < target) ++ties;
    const float value = from_ordered(prefix);
    return {value, nth_equal(row, value, ties)};
  }
  return {};
}

// The draw from the `n` largest (keys, best first) if the kept tokens lie inside them, else -2.
// `complete`: there are no tokens of any mass besides them.
inline int32_t draw_from_candidates(const uint64_t* keys, int32_t n, bool complete, const RowSum& sum,
                                    double rate, const Filters& filters, double u) {
  constexpr int kMost = 128;
  int32_t ids[kMost];
  double mass[kMost];
  const double target = filters.top_p < 1.0f ? filters.top_p * sum.sum : kInf;
  double total = 0.0;
  int32_t kept = 0;
  bool inside = complete;
  for (int32_t r = 0; r <= n; ++r) {
    if (r > 0 && ((filters.top_k > 0 && r >= filters.top_k) || total >= target ||
                  (r < n && key_value(keys[r]) < filters.lowest))) {
      inside = true;
      break;
    }
    if (r == n) break;
    const double each = std::exp2((static_cast<double>(key_value(keys[r])) - sum.max) * rate);
    const int32_t id = key_id(keys[r]);
    int32_t at = kept++;
    for (; at > 0 && ids[at - 1] > id; --at) {
      ids[at] = ids[at - 1];
      mass[at] = mass[at - 1];
    }
    ids[at] = id;
    mass[at] = each;
    total += each;
  }
  if (!inside) return -2;
  const double drawn = u * total;
  double running = 0.0;
  int32_t last = key_id(keys[0]);
  for (int32_t i = 0; i < kept; ++i) {
    if (mass[i] == 0.0) continue;
    last = ids[i];
    running += mass[i];
    if (running > drawn) break;
  }
  return last;
}

// The draw where `infs` entries are +inf and share the probability.
template <class T>
inline int32_t draw_among_infs(const Row<T>& row, const Filters& filters, double u) {
  int64_t kept = row.sum.infs;
  if (filters.top_k > 0 && filters.top_k < kept) kept = filters.top_k;
  if (filters.top_p < 1.0f) {
    const int64_t enough = static_cast<int64_t>(std::ceil(filters.top_p * row.sum.sum));
    kept = enough < kept ? enough : kept;
  }
  const int64_t rank = static_cast<int64_t>(u * static_cast<double>(kept));
  return nth_equal(row, kInf, (rank < kept ? rank : kept - 1) + 1);
}

}  // namespace MF_NS
}  // namespace marco_fast
