// Drawing a token of a row: by inverse CDF in id order, over the tokens that the filters keep.
//
// Included once per instruction set.
#pragma once

#include "confidence/cut.h"

namespace marco_fast {
namespace MF_NS {

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

// The first entry whose cumulative mass exceeds target; where rounding leaves none, the last one
// with any mass (-1: there is none).
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

// The entries of a chunk fall into two runs, up to the cut's last id and after it: each has its
// limit.
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
    if (!((record.max - m) * row.rate >= -126.0f) || record.max < cut.value) return 0.0;
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

// The draw from the `n` largest (keys, best first) if the kept tokens lie inside them, else -2.
// `complete`: there are no tokens of any mass besides them.
inline int32_t draw_from_candidates(const uint64_t* keys, int32_t n, bool complete,
                                    const RowSum& sum, double rate, const Filters& filters,
                                    double u) {
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
