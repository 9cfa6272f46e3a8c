// Drawing a token of a row from those that the filters keep, by inverse CDF in the order of ids.
//
// Included once per instruction set.
#pragma once

#include "confidence/cut.h"

namespace marco_fast {
namespace MF_NS {

// The masses 2^((x - m) * rate) of a vocabulary tile; 0 where x is below the limit, -inf or NaN.
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
  for_vocab_tiles(x, n, [&](const T* p, int) __attribute__((always_inline)) {
    Vec mass[kVecs];
    masses(p, set1(m), set1(rate), limit, mass);
    for (int j = 0; j < kVecs; ++j) sum[j] = add(sum[j], mass[j]);
  });
  return sum_lanes(sum);
}

// The index of the first logit at which the cumulative mass exceeds the target. If rounding leaves
// no such logit, the last one that has any mass; -1: none has.
template <class T>
inline int find_mass(const T* x, int n, float m, float rate, float limit, double target) {
  double before = 0.0;
  int found = -1, last = -1;
  for_vocab_tiles(x, n, [&](const T* p, int at) {
    if (found >= 0) return;
    Vec mass[kVecs];
    masses(p, set1(m), set1(rate), limit, mass);
    const double tile = sum_lanes(mass);
    if (tile == 0.0) return;
    const bool inside = before + tile > target;
    float each[kVocabTile];
    for (int j = 0; j < kVecs; ++j) store(each + j * Vec::kLanes, mass[j]);
    double running = before;
    for (int i = 0; i < kVocabTile; ++i) {
      if (each[i] == 0.0f) continue;
      last = at + i;
      running += each[i];
      if (inside && running > target) break;
    }
    if (inside) found = last;
    before += tile;
  });
  return found >= 0 ? found : last;
}

// A block in two parts, up to the cut's last_id and after it. A part keeps logits >= its limit.
struct Parts {
  int first;  // logits of the first part
  float limits[2];
};
inline Parts parts_of(const Cut& cut, int64_t first_id, int n) {
  const int64_t ties = static_cast<int64_t>(cut.last_id) + 1 - first_id;
  const int first = ties <= 0 ? 0 : ties < n ? static_cast<int>(ties) : n;
  return {first, {cut.value, std::nextafter(cut.value, kInf)}};
}

// The id in a block at which the mass of the logits that the cut keeps, in the order of ids,
// exceeds the target.
template <class T>
inline int32_t draw_in_block(const Row<T>& row, const Cut& cut, int64_t block, double target) {
  const T* x = row.x + block * kVocabBlock;
  const float m = row.sum.max;
  const int n = row.block_size(block);
  const Parts parts = parts_of(cut, block * kVocabBlock, n);
  const double first = sum_masses(x, parts.first, m, row.rate, parts.limits[0]);
  const int32_t id = static_cast<int32_t>(block * kVocabBlock);
  int at = -1;
  if (first <= target)
    at = find_mass(x + parts.first, n - parts.first, m, row.rate, parts.limits[1], target - first);
  if (at >= 0) return id + parts.first + at;
  return id + find_mass(x, parts.first, m, row.rate, parts.limits[0], target);
}

// The draw for u in [0, 1) from the tokens that the cut keeps. `known`: the cut keeps everything,
// so the records hold the masses of the blocks.
template <class T>
inline int32_t draw_by_id(const Row<T>& row, const Cut& cut, bool known, double u) {
  const float m = row.sum.max;
  auto block_mass = [&](int64_t block) {
    const BlockRecord& record = row.records[block];
    // A logit whose power underflows has no mass, so a block of such logits must have none.
    if (!((record.max - m) * row.rate >= -126.0f) || record.max < cut.value) return 0.0;
    if (known) {
      const double y = (static_cast<double>(record.max) - m) * row.rate;
      return std::exp2(y) * (row.score_sums ? record.sum : record.sampling_sum);
    }
    const T* x = row.x + block * kVocabBlock;
    const int n = row.block_size(block);
    const Parts parts = parts_of(cut, block * kVocabBlock, n);
    return sum_masses(x, parts.first, m, row.rate, parts.limits[0]) +
           sum_masses(x + parts.first, n - parts.first, m, row.rate, parts.limits[1]);
  };
  double total = 0.0;
  for (int64_t block = 0; block < row.blocks(); ++block) {
    const double mass = block_mass(block);
    row.records[block].sampling_sum = static_cast<float>(mass);
    total += row.records[block].sampling_sum;
  }
  const double target = u * total;
  double before = 0.0, skipped = 0.0;
  int64_t chosen = -1;
  for (int64_t block = 0; block < row.blocks() && !(before > target); ++block) {
    if (row.records[block].sampling_sum == 0.0f) continue;
    chosen = block;
    skipped = before;
    before += row.records[block].sampling_sum;
  }
  if (chosen < 0) return -1;
  return draw_in_block(row, cut, chosen, target - skipped);
}

// The draw from the n largest logits (keys in descending order), or -2 where a token that is kept
// may lie outside them. `complete`: no other token has any mass.
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
    if (r > 0 && ((filters.sample_top_k > 0 && r >= filters.sample_top_k) || total >= target ||
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

// The draw where logits are +inf and share the probability.
template <class T>
inline int32_t draw_among_infs(const Row<T>& row, const Filters& filters, double u) {
  int64_t kept = row.sum.infs;
  if (filters.sample_top_k > 0 && filters.sample_top_k < kept) kept = filters.sample_top_k;
  if (filters.top_p < 1.0f) {
    const int64_t enough = static_cast<int64_t>(std::ceil(filters.top_p * row.sum.sum));
    kept = enough < kept ? enough : kept;
  }
  const int64_t rank = static_cast<int64_t>(u * static_cast<double>(kept));
  return nth_equal(row, kInf, (rank < kept ? rank : kept - 1) + 1);
}

}  // namespace MF_NS
}  // namespace marco_fast
