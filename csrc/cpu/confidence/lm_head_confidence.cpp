// lm_head_confidence on a CPU; compiled once per instruction set.
#include "confidence/lm_head_confidence.h"

#include <type_traits>

#include "base/philox.h"
#include "confidence/finish.h"
#include "base/simd_tile.h"

namespace marco_fast {
namespace MF_NS {
namespace {

// Rows of hidden and of weights whose products are summed at once, dimensions in lanes: 12 sums in 16
// registers, 24 in 32.
constexpr int kRows = MF_ISA >= MF_ISA_AVX512 ? 6 : 3;
constexpr int kEntries = 4;
constexpr int kPieceSteps = 128;  // products of a lane in one chain; chains are then added up
constexpr int64_t kBlockBytes = 16384;  // of weights that stay in L1 while every row passes

template <int N>
struct Int {
  static constexpr int value = N;
};
template <int N, class F>
inline void with_count(int count, F&& f) {
  if constexpr (N == 1) {
    f(Int<1>{});
  } else {
    if (count == N) return f(Int<N>{});
    with_count<N - 1>(count, f);
  }
}

template <class T>
constexpr bool kPairs = kPairDot && std::is_same<T, bf16>::value;
template <class T>
constexpr int kStep = kPairs<T> ? 2 * Vec::kLanes : Vec::kLanes;  // elements of a register of weights

template <class T>
inline __attribute__((always_inline)) Vec load_weights(const T* p) {
  if constexpr (kPairs<T>) {
    return load(reinterpret_cast<const float*>(p));
  } else {
    return load(p);
  }
}

template <class T>
inline Vec dot(Vec x, Vec w, Vec acc) {
  return kPairs<T> ? dot_step_pair(x, w, acc) : fma(x, w, acc);
}

// Which lines of weights a tile of rows asks for from memory: every so many, those of this remainder,
// `ahead` elements on. So the next block comes in all the while, not with the first rows alone.
struct Ask {
  int64_t ahead;
  int first, every;
};

// sums[r * kEntries + n] (+)= lane by lane x[r] * w[n] over `steps` registers from element `at` on.
template <class T, int R, int N, bool kAsk>
inline void multiply(const float* x, int64_t x_stride, const T* w, int64_t w_stride, Ask ask, int steps,
                     bool resume, Vec* sums) {
  constexpr int kSteps = 64 / sizeof(T) / kStep<T>;  // of a line
  Vec acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) acc[r][n] = set1(0.0f);
  int due = ask.first * kSteps;
  for (int i = 0; i < steps; ++i) {
    if (kAsk && i == due) {
      for (int n = 0; n < N; ++n) prefetch(w + n * w_stride + ask.ahead + i * kStep<T>);
      due += ask.every * kSteps;
    }
    Vec row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = load(x + r * x_stride + i * Vec::kLanes);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Vec weights = load_weights(w + n * w_stride + i * kStep<T>);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][n] = dot<T>(row[r], weights, acc[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      Vec& sum = sums[r * kEntries + n];
      sum = resume ? add(sum, acc[r][n]) : acc[r][n];
    }
}

inline float round_to(Dtype dtype, float x) {
  if (dtype == Dtype::f32) return x;
  if (dtype == Dtype::bf16) {
    bf16 rounded;
    from_float(x, &rounded);
    return to_float(rounded);
  }
  f16 rounded;
  from_float(x, &rounded);
  return to_float(rounded);
}

// Logits of R rows and N entries, the first of which is `entry`, at logits[r * stride + n].
template <class T, int R, int N, bool kAsk>
void tile(const LMHeadArgs& args, const HeadRows& rows, int64_t row, int64_t entry, Ask ask,
          float* logits, int64_t stride) {
  const T* w = static_cast<const T*>(args.weight) + entry * args.weight_stride;
  const float* x = rows.words + row * rows.stride;
  const int64_t whole = args.size / kStep<T>;
  Vec sums[R * kEntries];
  for (int i = 0; i < R * kEntries; ++i) sums[i] = set1(0.0f);
  for (int64_t at = 0; at < whole; at += kPieceSteps) {
    const int steps = static_cast<int>(whole - at < kPieceSteps ? whole - at : kPieceSteps);
    multiply<T, R, N, kAsk>(x + at * Vec::kLanes, rows.stride, w + at * kStep<T>, args.weight_stride,
                            ask, steps, at > 0, sums);
  }
  if (const int64_t rest = args.size - whole * kStep<T>; rest > 0) {
    T last[N][kStep<T>] = {};  // beyond a row's end may be anything
    for (int n = 0; n < N; ++n)
      std::memcpy(last[n], w + n * args.weight_stride + whole * kStep<T>, rest * sizeof(T));
    multiply<T, R, N, false>(x + whole * Vec::kLanes, rows.stride, last[0], kStep<T>, {}, 1,
                            true, sums);
  }
  float totals[R * kEntries];
  reduce_add_all(sums, totals);
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) {
      float z = totals[r * kEntries + n];
      if (args.bias) z += args.bias[entry + n];
      logits[r * stride + n] = round_to(args.rounded, z);
    }
}

template <class T>
void logits_of(const LMHeadArgs& args, const HeadRows& rows, int64_t row_begin, int64_t row_end,
               int64_t begin, int64_t end, float* logits, int64_t stride) {
  const int64_t fit = kBlockBytes / static_cast<int64_t>(sizeof(T)) / args.size / kEntries * kEntries;
  const int64_t block = fit < kEntries ? kEntries : fit;
  const int64_t count = row_end - row_begin, tiles = (count + kRows - 1) / kRows;
  for (int64_t from = begin; from < end; from += block) {
    const int64_t to = from + block < end ? from + block : end;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = row_begin + count * t / tiles;
      const Ask ask{block * args.weight_stride, static_cast<int>(t), static_cast<int>(tiles)};
      with_count<kRows>(static_cast<int>(row_begin + count * (t + 1) / tiles - row), [&](auto r) {
        constexpr int R = decltype(r)::value;
        float* out = logits + (row - row_begin) * stride;
        int64_t v = from;
        for (; v + kEntries <= to; v += kEntries)
          tile<T, R, kEntries, true>(args, rows, row, v, ask, out + (v - begin), stride);
        for (; v < to; ++v) tile<T, R, 1, false>(args, rows, row, v, {}, out + (v - begin), stride);
      });
    }
  }
}

// The sums of masses by groups of a chunk, where a draw may need them.
void sum_groups(const float* x, int n, const ChunkRecord& record, float rate, float* groups) {
  for (int g = 0; g < kGroupsOfChunk; ++g) groups[g] = 0.0f;
  if (!(record.max > -kInf) || record.infs > 0) return;
  for_groups(x, n, [&](const float* p, int at) {
    Vec mass[kVecs];
    masses(p, set1(record.max), set1(rate), kLowest, mass);
    groups[at / kDrawGroup] = sum_lanes(mass);
  });
}

bool draws_from_all(const ConfidenceArgs& args, int64_t row) {
  return !is_greedy(args.sample->temperature[row]) && !is_filtered(*args.sample, row, args.logits.cols);
}

// A token and its logit.
struct Drawn {
  int32_t token;
  float logit;
};

// From the whole vocabulary: the chunk, then the group that the target falls into, then the entry, whose
// logits are computed again.
template <class T>
Drawn draw_from_all(const LMHeadArgs& args, const HeadRows& rows, int64_t row, const HeadState& state,
                    float largest, double u) {
  const float rate = rate_of(args.scores.sample->temperature[row]);
  const int64_t entries = args.scores.logits.cols, chunks = num_chunks(entries);
  const auto scale_of = [&](int64_t c) {
    const double y = (static_cast<double>(state.records[c].max) - largest) * rate;
    return y >= -126.0 ? std::exp2(y) : 0.0;
  };
  const auto sum_of = [&](int64_t c) {
    double sum = 0.0;
    for (int g = 0; g < kGroupsOfChunk; ++g) sum += state.groups[c * kGroupsOfChunk + g];
    return sum;
  };
  double total = 0.0;
  for (int64_t c = 0; c < chunks; ++c) total += scale_of(c) * sum_of(c);
  const double target = u * total;
  double before = 0.0, inside = 0.0;
  int64_t group = -1;
  for (int64_t c = 0; c < chunks; ++c) {
    const double scale = scale_of(c), mass = scale * sum_of(c);
    if (mass == 0.0) continue;
    const bool last = before + mass > target;
    for (int64_t g = c * kGroupsOfChunk; g < (c + 1) * kGroupsOfChunk; ++g) {
      const double each = scale * state.groups[g];
      if (each == 0.0) continue;
      group = g;
      inside = (target - before) / scale;
      before += each;
      if (last && before > target) break;
    }
    if (last) break;
  }
  const int64_t first = group * kDrawGroup;
  const int64_t end = first + kDrawGroup < entries ? first + kDrawGroup : entries;
  float x[kDrawGroup];
  logits_of<T>(args, rows, row, row + 1, first, end, x, kDrawGroup);
  const float m = state.records[group / kGroupsOfChunk].max;
  const int at = find_mass(x, static_cast<int>(end - first), m, rate, kLowest, inside);
  return {static_cast<int32_t>(first + at), x[at]};
}

// token -2: all logits are needed.
template <class T>
Drawn draw(const LMHeadArgs& args, const HeadRows& rows, const ScannedRow& scanned,
           const HeadState& state, const RowSum& scored) {
  const ConfidenceArgs& scores = args.scores;
  const SampleOptions& options = *scores.sample;
  const int64_t b = scanned.b, cols = scores.logits.cols;
  if (scanned.count == 0) return {-1, -kInf};
  if (is_greedy(options.temperature[b])) return {key_id(scanned.keys[0]), key_value(scanned.keys[0])};
  if (scored.infs > 0) return {-2, 0.0f};
  const double u = philox_uniform(options.seeds[b], options.positions[b], Purpose::token);
  if (draws_from_all(scores, b)) return draw_from_all<T>(args, rows, b, state, scored.max, u);
  const float rate = rate_of(options.temperature[b]);
  const RowSum sum = needs_sampling_sums(scores, b)
                         ? fold(scanned.records, num_chunks(cols), rate, true)
                         : scored;
  const Filters filters{options.top_k[b], options.top_p[b], lowest_kept(options, b, sum.max)};
  const int32_t most = head_candidates(cols);
  const int32_t n = scanned.count < most ? scanned.count : most;
  const bool complete = scanned.count == n && (n < head_capacity(scores) || n == cols);
  const int32_t token = draw_from_candidates(scanned.keys, n, complete, sum, rate, filters, u);
  for (int32_t r = 0; r < n; ++r)
    if (key_id(scanned.keys[r]) == token) return {token, key_value(scanned.keys[r])};
  return {-2, 0.0f};
}

template <class T>
bool finish(const LMHeadArgs& args, int64_t row, const HeadRows& rows, HeadState* state) {
  const ConfidenceArgs& scores = args.scores;
  const int64_t chunks = num_chunks(scores.logits.cols);
  Candidates best(state->keys, head_capacity(scores));
  best.adopt(state->count);
  best.sort();
  const ScannedRow scanned{row, state->records, state->keys, state->count};
  const RowSum sum = fold(state->records, chunks, rates_of_row(scores, row).score, false);
  const Drawn drawn = draw<T>(args, rows, scanned, *state, sum);
  if (drawn.token == -2) return false;
  scores.out.status[row] = status_of(scanned, chunks);
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
  if constexpr (kPairs<T>) {
    std::memcpy(to, from, sizeof(T) * args.size);
  } else {
    for (int64_t i = 0; i < args.size; ++i) to[i] = to_float(from[i]);
  }
}

}  // namespace

#define MF_BY_DTYPE(call)                           \
  switch (args.dtype) {                             \
    case Dtype::f32: { using T = float; return call; } \
    case Dtype::bf16: { using T = bf16; return call; } \
    default: { using T = f16; return call; }           \
  }

void lm_head_load_row(const LMHeadArgs& args, int64_t row, const HeadRows& rows) {
  MF_BY_DTYPE(load_row<T>(args, row, rows))
}

void lm_head_logits(const LMHeadArgs& args, const HeadRows& rows, int64_t row_begin, int64_t row_end,
                    int64_t begin, int64_t end, float* logits, int64_t stride) {
  MF_BY_DTYPE(logits_of<T>(args, rows, row_begin, row_end, begin, end, logits, stride))
}

void lm_head_scan(const LMHeadArgs& args, int64_t row, int64_t begin, int64_t end, const float* x,
                  HeadState* state) {
  const ConfidenceArgs& scores = args.scores;
  const Rates rates = rates_of_row(scores, row);
  Candidates best(state->keys, head_capacity(scores));
  best.adopt(state->count);
  for (int64_t c = begin; c < end; ++c, x += kChunk) {
    const int64_t left = scores.logits.cols - c * kChunk;
    const int n = static_cast<int>(left < kChunk ? left : kChunk);
    scan_chunk(x, n, static_cast<int32_t>(c * kChunk), rates, best, state->records + c);
    if (draws_from_all(scores, row))
      sum_groups(x, n, state->records[c], rate_of(scores.sample->temperature[row]),
                 state->groups + c * kGroupsOfChunk);
  }
  state->count = best.count();
}

void lm_head_record(const LMHeadArgs& args, int64_t row, HeadState* state, const HeadRecords& out) {
  const ConfidenceArgs& scores = args.scores;
  const int64_t chunks = num_chunks(scores.logits.cols);
  Candidates best(state->keys, head_capacity(scores));
  best.adopt(state->count);
  best.sort();
  const Rates rates = rates_of_row(scores, row);
  const RowSum sum = fold(state->records, chunks, rates.score, false);
  const bool same = score_temperature(scores, row) == scores.sample->temperature[row];
  double* sums = out.sums + row * 3;
  out.top[row] = sum.max;
  sums[0] = sum.sum, sums[1] = sum.weighted;
  sums[2] = same                    ? sum.sum
            : rates.sampling != 0.0f ? fold(state->records, chunks, rates.sampling, true).sum
                                     : 0.0;
  out.infs[row] = static_cast<int32_t>(sum.infs);
  out.nans[row] = 0;
  for (int64_t c = 0; c < chunks; ++c) out.nans[row] |= state->records[c].nan ? 1 : 0;
  for (int32_t i = 0; i < out.candidates; ++i) {
    const int64_t at = row * out.candidates + i;
    out.logits[at] = i < state->count ? key_value(state->keys[i]) : -kInf;
    out.ids[at] = i < state->count ? key_id(state->keys[i]) : -1;
  }
}

bool lm_head_finish(const LMHeadArgs& args, int64_t row, const HeadRows& rows, HeadState* state) {
  MF_BY_DTYPE(finish<T>(args, row, rows, state))
}
#undef MF_BY_DTYPE

}  // namespace MF_NS
}  // namespace marco_fast
