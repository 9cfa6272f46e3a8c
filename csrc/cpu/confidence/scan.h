// Reading a row of logits: its largest, the sums of exponentials of its blocks, and their fold.
//
// Included once per instruction set. Sums run in 64 lanes (a vocabulary tile) whatever the width of
// a register, and the lanes are added up in one order: every instruction set gives the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/exp.h"
#include "base/prefetch.h"
#include "base/simd.h"
#include "confidence/topk_confidence.h"

namespace marco_fast {
namespace MF_NS {

inline constexpr int kVecs = kVocabTile / Vec::kLanes;  // registers of a vocabulary tile
inline constexpr float kLowest = std::numeric_limits<float>::lowest();

// Floats as integers in the same order; -0 equals +0. x is not NaN.
inline uint32_t ordered(float x) {
  x += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float from_ordered(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// A logit and its id in one integer: the larger value, then the smaller id, has the larger key.
inline uint64_t pack(float value, int32_t id) {
  return static_cast<uint64_t>(ordered(value)) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
inline float key_value(uint64_t key) { return from_ordered(static_cast<uint32_t>(key >> 32)); }
inline int32_t key_id(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

// The `capacity` largest keys so far, in the caller's memory: a heap with the smallest on top.
class Candidates {
 public:
  Candidates(uint64_t* keys, int32_t capacity) : keys_(keys), capacity_(capacity) {}

  // Values up to the threshold cannot enter, because ids arrive in ascending order.
  float threshold() const { return count_ < capacity_ ? -kInf : key_value(keys_[0]); }

  void push(uint64_t key) {
    if (count_ < capacity_) {
      int32_t i = count_++;
      for (; i > 0 && keys_[(i - 1) / 2] > key; i = (i - 1) / 2) keys_[i] = keys_[(i - 1) / 2];
      keys_[i] = key;
    } else if (key > keys_[0]) {
      sink(0, count_, key);
    }
  }

  // The largest key first. Nothing may be pushed afterwards.
  int32_t sort() {
    for (int32_t end = count_ - 1; end > 0; --end) {
      const uint64_t key = keys_[end];
      keys_[end] = keys_[0];
      sink(0, end, key);
    }
    return count_;
  }

  int32_t count() const { return count_; }

  // Takes over a heap of `count` keys that the memory holds already.
  void adopt(int32_t count) { count_ = count; }

 private:
  void sink(int32_t i, int32_t end, uint64_t key) {
    for (int32_t child = 2 * i + 1; child < end; child = 2 * i + 1) {
      if (child + 1 < end && keys_[child + 1] < keys_[child]) ++child;
      if (keys_[child] >= key) break;
      keys_[i] = keys_[child];
      i = child;
    }
    keys_[i] = key;
  }

  uint64_t* keys_;
  int32_t capacity_, count_ = 0;
};

// Calls step(p, i) for each vocabulary tile of the n logits x: p is x + i, or a copy of the last
// tile filled up with -inf.
template <class T, class Step>
inline __attribute__((always_inline)) void for_vocab_tiles(const T* x, int n, Step step) {
  int i = 0;
  for (; i + kVocabTile <= n; i += kVocabTile) step(x + i, i);
  if (i < n) {
    T tail[kVocabTile];
    for (int j = 0; j < kVocabTile; ++j) {
      if (j < n - i) {
        tail[j] = x[i + j];
      } else {
        from_float(-kInf, tail + j);
      }
    }
    step(tail, i);
  }
}

// The sum of a tile's lanes by halving: one order for every instruction set.
inline float sum_lanes(const Vec (&acc)[kVecs]) {
  float lanes[kVocabTile];
  for (int j = 0; j < kVecs; ++j) store(lanes + j * Vec::kLanes, acc[j]);
  for (int half = kVocabTile / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// The largest logit, or -inf; NaN is skipped. Logits above the threshold become candidates.
template <class T>
inline float sweep_max(const T* x, int n, int32_t first_id, Candidates& best) {
  Vec running = set1(-kInf);
  Vec threshold = set1(best.threshold());
  for_vocab_tiles(x, n, [&](const T* p, int at) __attribute__((always_inline)) {
    Vec v[kVecs];
    Vec top = set1(-kInf);
    for (int j = 0; j < kVecs; ++j) {
      v[j] = load(p + j * Vec::kLanes);
      top = max(v[j], top);
    }
    running = max(top, running);
    if (__builtin_expect(greater_mask(top, threshold) == 0, 1)) return;
    for (int j = 0; j < kVecs; ++j) {
      for (uint32_t hits = greater_mask(v[j], threshold); hits != 0; hits &= hits - 1) {
        const int i = j * Vec::kLanes + __builtin_ctz(hits);
        const float value = to_float(p[i]);
        if (value > best.threshold()) best.push(pack(value, first_id + at + i));
      }
      threshold = set1(best.threshold());
    }
  });
  return reduce_max(running);
}

// The sum of 2^y, y = (x - m) * rate, which is NaN if a logit is NaN. kWeighted: also of 2^y * y.
template <bool kWeighted, class T>
inline float sweep_sum(const T* x, int n, float m, float rate, float* weighted) {
  Vec sum[kVecs], product[kVecs];
  for (int j = 0; j < kVecs; ++j) sum[j] = product[j] = set1(0.0f);
  const Vec vm = set1(m), vrate = set1(rate), lowest = set1(-126.0f);
  for_vocab_tiles(x, n, [&](const T* p, int) __attribute__((always_inline)) {
    // Requests the next block, to arrive while this one keeps the arithmetic units busy.
    const uintptr_t next = reinterpret_cast<uintptr_t>(p) + kVocabBlock * sizeof(T);
    for (size_t byte = 0; byte < kVocabTile * sizeof(T); byte += 64)
      prefetch(reinterpret_cast<const void*>(next + byte));
    for (int j = 0; j < kVecs; ++j) {
      const Vec y = mul(sub(load(p + j * Vec::kLanes), vm), vrate);
      const Vec e = exp2_nonpositive(y);
      sum[j] = add(sum[j], e);
      if (kWeighted) product[j] = fma(e, max(y, lowest), product[j]);
    }
  });
  if (kWeighted) *weighted = sum_lanes(product);
  return sum_lanes(sum);
}

// Which sums a row needs, as rates log2(e) / temperature; 0: not needed.
struct Rates {
  float score;
  float sampling;  // 0 as well where it would equal `score`
  bool weighted;
};

inline float rate_of(float temperature) {
  constexpr double kMost = std::numeric_limits<float>::max();
  const double rate = 1.4426950408889634 / temperature;
  return static_cast<float>(rate < kMost ? rate : kMost);
}

template <class T>
inline void sweep_sums(const T* x, int n, const Rates& rates, BlockRecord* record) {
  record->sum = rates.weighted ? sweep_sum<true>(x, n, record->max, rates.score, &record->weighted)
                               : sweep_sum<false>(x, n, record->max, rates.score, nullptr);
  if (rates.sampling != 0.0f)
    record->sampling_sum = sweep_sum<false>(x, n, record->max, rates.sampling, nullptr);
}

// For a block with a NaN, with a +inf, or without a logit above -inf.
template <class T>
__attribute__((noinline)) void scan_unusual_block(const T* x, int n, const Rates& rates,
                                                  BlockRecord* record) {
  float clean[kVocabBlock];
  for (int i = 0; i < n; ++i) {
    const float value = to_float(x[i]);
    record->nan |= value != value;
    record->infs += value == kInf;
    clean[i] = value != value ? -kInf : value;
  }
  if (record->infs > 0) {
    record->sum = record->sampling_sum = static_cast<float>(record->infs);
    record->weighted = 0.0f;
  } else if (record->max == -kInf) {
    record->sum = record->weighted = record->sampling_sum = 0.0f;
  } else {
    sweep_sums(clean, n, rates, record);
  }
}

template <class T>
inline void scan_block(const T* x, int n, int32_t first_id, const Rates& rates, Candidates& best,
                       BlockRecord* record) {
  *record = {sweep_max(x, n, first_id, best), 0.0f, 0.0f, 0.0f, 0, 0};
  if (record->max > -kInf && record->max < kInf) {
    sweep_sums(x, n, rates, record);
    if (record->sum == record->sum) return;
  }
  scan_unusual_block(x, n, rates, record);
}

// A row's softmax at one temperature T: the sum of e^(z / T) is 2^(max * rate) * sum. If logits are
// +inf, these `infs` share the probability. Without a logit above -inf the sum is 0.
struct RowSum {
  float max = -kInf;
  double sum = 0.0;
  double weighted = 0.0;  // of 2^y * y, y = (z - max) * rate
  int64_t infs = 0;
};

inline RowSum fold(const BlockRecord* records, int64_t blocks, float rate, bool sampling) {
  RowSum row;
  for (int64_t i = 0; i < blocks; ++i) {
    row.max = records[i].max > row.max ? records[i].max : row.max;
    row.infs += records[i].infs;
  }
  if (row.infs > 0) row.sum = static_cast<double>(row.infs);
  if (row.infs > 0 || row.max == -kInf) return row;
  for (int64_t i = 0; i < blocks; ++i) {
    if (records[i].max == -kInf) continue;
    const double y = (static_cast<double>(records[i].max) - row.max) * rate;
    const double scale = std::exp2(y);
    const double sum = sampling ? records[i].sampling_sum : records[i].sum;
    row.sum += scale * sum;
    if (scale > 0.0) row.weighted += scale * (records[i].weighted + y * sum);
  }
  return row;
}

}  // namespace MF_NS
}  // namespace marco_fast
