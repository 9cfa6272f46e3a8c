// Products with packed weights; compiled once per instruction set.
#include <cmath>
#include <type_traits>

#include "base/exp.h"
#include "base/expand.h"
#include "base/int8_dot.h"
#include "base/prefetch.h"
#include "base/simd_tile.h"
#include "base/unroll.h"
#include "decoder/decoder_kernels.h"

namespace marco_fast {
namespace MF_NS {
namespace {

constexpr int kLanes = Vec::kLanes;
constexpr int kVecs = kPanel / kLanes;  // registers of a panel's outputs
constexpr int kHalf = kVecs / 2;
// A word is a float32, or two bfloat16 of adjacent inputs. A step multiplies one word of each row
// by a panel's kPanel words for it, which are 128 bytes. A tile is kTileRows rows, which share each
// load of weights.
constexpr int kTileRows = MF_ISA == MF_ISA_SCALAR ? 2 : kAccumulators / kVecs;
constexpr int kBatchRows = 8 * kTileRows;  // they pass over a piece of a panel while it is cached
// Steps per piece of a panel. A piece stays in L1 where tiles are small, in L2 where they are
// large; where bfloat16 is widened, the rows' part of it must stay there too.
constexpr int64_t kPieceSteps = MF_ISA == MF_ISA_AVX2 ? 128 : MF_ISA == MF_ISA_AVX512 ? 256 : 2048;
// Whether the tiles that pass over a piece request the next piece, each a share of it. Otherwise
// the first tile requests the weights of the step kStepsAhead of its own.
constexpr bool kSharePrefetch = MF_ISA == MF_ISA_AVX2;
constexpr int64_t kStepsAhead = 16;

// The two bfloat16 of each word as float32.
#if MF_ISA == MF_ISA_SCALAR
inline Vec low(Vec words) {
  uint32_t bits;
  std::memcpy(&bits, &words.v, 4);
  return {to_float(bf16{static_cast<uint16_t>(bits)})};
}
inline Vec high(Vec words) {
  uint32_t bits;
  std::memcpy(&bits, &words.v, 4);
  return {to_float(bf16{static_cast<uint16_t>(bits >> 16)})};
}
#elif MF_ISA == MF_ISA_AVX2
inline Vec low(Vec words) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(words.v), 16))};
}
inline Vec high(Vec words) {  // by shifts: a mask would take a register that multiply() needs
  const __m256i bits = _mm256_srli_epi32(_mm256_castps_si256(words.v), 16);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))};
}
#else
inline Vec low(Vec words) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words.v), 16))};
}
inline Vec high(Vec words) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words.v), upper))};
}
#endif

// One word in every lane.
inline Vec broadcast(const float* word) {
#if MF_ISA == MF_ISA_SCALAR
  return {*word};
#elif MF_ISA == MF_ISA_AVX2
  return {_mm256_broadcast_ss(word)};
#else
  return {_mm512_set1_ps(*word)};
#endif
}

// acc[r][j] += x[r] * w(j)
template <int R, class W>
inline __attribute__((always_inline)) void multiply_add(const Vec (&x)[R], W&& w,
                                                        Vec (&acc)[R][kVecs]) {
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) {
    const Vec each = w(j);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) acc[r][j] = fma(x[r], each, acc[r][j]);
  }
}

// sums [R, kPanel] += a [R, steps] * panel [steps, kPanel]. kPairs: the words of the panel are
// pairs of bfloat16; if they cannot be multiplied in pairs, a has two float32 per step. kPrefetch:
// whether the tile requests weights.
template <bool kPairs, bool kPrefetch, int R>
__attribute__((noinline)) void multiply(const float* a, int64_t stride, const float* panel,
                                        int64_t steps, PrefetchShare share, float* sums) {
  // A local array that no call takes: GCC keeps all of it in registers.
  Vec acc[R][kVecs];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) acc[r][j] = load(sums + r * kPanel + j * kLanes);
  const int64_t every = !kPrefetch ? steps : kSharePrefetch ? share.every : 1;
  const float* next = panel + share.ahead;
  for (int64_t begin = 0; begin < steps; begin += every, next += kPanel) {
    if (kPrefetch) {
      prefetch(next);
      prefetch(next + 16);
    }
    const int64_t end = steps - begin < every ? steps : begin + every;
    for (int64_t k = begin; k < end; ++k, panel += kPanel) {
      const auto word = [panel](int j) { return load(panel + j * kLanes); };
      Vec x[R];
      if constexpr (kPairs && kPairDot) {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + k);
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          const Vec w = word(j);
#pragma GCC unroll 12
          for (int r = 0; r < R; ++r) acc[r][j] = dot_step_pair(x[r], w, acc[r][j]);
        }
      } else if constexpr (kPairs) {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + 2 * k);
        multiply_add(x, [&](int j) { return low(word(j)); }, acc);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + 2 * k + 1);
        multiply_add(x, [&](int j) { return high(word(j)); }, acc);
      } else {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + k);
        multiply_add(x, word, acc);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) store(sums + r * kPanel + j * kLanes, acc[r][j]);
}

// bfloat16 to float32; size is even.
inline void widen(const bf16* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load(from + i));
  for (; i < size; ++i) to[i] = to_float(from[i]);
}

// e^x for |x| <= 88.
inline Vec exp_within(Vec x) {
  const Vec n = round(mul(x, set1(1.44269504f)));
  const Vec r = fma(n, set1(1.42860677e-6f), fma(n, set1(-0.693148613f), x));
  return scale2(exp_polynomial(r), n);
}

// g / (1 + e^-g). In float32 that is 0 below -88 and g above 88. NaN stays NaN.
inline Vec silu(Vec g) {
  const Vec low = max(set1(-88.0f), g), minus = sub(set1(0.0f), low);
  return divide(low, add(set1(1.0f), exp_within(max(set1(-88.0f), minus))));
}

inline void store_some(float* to, const float* from, int64_t count, bool accumulate) {
  for (int64_t i = 0; i < count; ++i) to[i] = accumulate ? to[i] + from[i] : from[i];
}

template <class T>
inline void store_gated(const LinearArgs& args, int64_t row, int64_t panel, const Vec* acc) {
  T* to = static_cast<T*>(args.gated) + row * args.gated_stride + panel * (kPanel / 2);
  for (int j = 0; j < kHalf; ++j) store(to + j * kLanes, mul(silu(acc[j]), acc[kHalf + j]));
}

inline void finish_row(const LinearArgs& args, int64_t row, int64_t panel, const float* sums) {
  const int64_t column = panel * kPanel;
  Vec acc[kVecs];
  for (int j = 0; j < kVecs; ++j) {
    acc[j] = load(sums + j * kLanes);
    if (args.bias) acc[j] = add(acc[j], load(args.bias + column + j * kLanes));
  }
  if (args.gated) {
    if (args.dtype == Dtype::bf16) return store_gated<bf16>(args, row, panel, acc);
    return store_gated<float>(args, row, panel, acc);
  }
  float* to = args.result + row * args.result_stride + column;
  if (args.out - column < kPanel) {
    float lanes[kPanel];
    for (int j = 0; j < kVecs; ++j) store(lanes + j * kLanes, acc[j]);
    return store_some(to, lanes, args.out - column, args.accumulate);
  }
  for (int j = 0; j < kVecs; ++j) {
    float* at = to + j * kLanes;
    store(at, args.accumulate ? add(load(at), acc[j]) : acc[j]);
  }
}

// A panel's steps [begin, end) of `steps`.
struct Piece {
  int64_t panel, steps, begin, end;
};

// Rows [row, row + R) over a piece of a panel. The first piece begins the sums [R, kPanel]; after
// the last one they are written to where they belong.
template <bool kPairs, bool kPrefetch, int R>
void tile(const LinearArgs& args, int64_t row, const Piece& piece, PrefetchShare share,
          float* sums) {
  const int64_t begin = piece.begin, steps = piece.end - begin;
  if (begin == 0) std::memset(sums, 0, sizeof(float) * R * kPanel);
  const float* at =
      static_cast<const float*>(args.panels) + (piece.panel * piece.steps + begin) * kPanel;
  if constexpr (kPairs && !kPairDot) {
    float wide[R][2 * kPieceSteps];
    for (int r = 0; r < R; ++r)
      widen(static_cast<const bf16*>(args.a) + (row + r) * args.a_stride + 2 * begin, 2 * steps,
            wide[r]);
    multiply<kPairs, kPrefetch, R>(wide[0], 2 * kPieceSteps, at, steps, share, sums);
  } else {
    const int64_t stride = kPairs ? args.a_stride / 2 : args.a_stride;
    multiply<kPairs, kPrefetch, R>(static_cast<const float*>(args.a) + row * stride + begin, stride,
                                   at, steps, share, sums);
  }
  if (piece.end < piece.steps) return;
  for (int r = 0; r < R; ++r) finish_row(args, row + r, piece.panel, sums + r * kPanel);
}

// Rows [first, first + count), at most kBatchRows, over one panel, piece by piece.
template <bool kPairs>
void panel_rows(const LinearArgs& args, int64_t panel, int64_t first, int count) {
  alignas(64) float sums[kBatchRows * kPanel];
  const int64_t steps = kPairs ? args.in / 2 : args.in;
  const int tiles = (count + kTileRows - 1) / kTileRows;
  for (int64_t begin = 0; begin < steps; begin += kPieceSteps) {
    const int64_t end = steps - begin < kPieceSteps ? steps : begin + kPieceSteps;
    const Piece piece{panel, steps, begin, end};
    for (int t = 0; t < tiles; ++t) {
      const int from = count * t / tiles, to = count * (t + 1) / tiles;
      const int64_t ahead = kSharePrefetch ? end - begin + (end - begin) * t / tiles : kStepsAhead;
      const PrefetchShare share{ahead * kPanel, 0, tiles};
      with_count<kTileRows>(to - from, [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        const auto run = kSharePrefetch || t == 0 ? tile<kPairs, true, R> : tile<kPairs, false, R>;
        run(args, first + from, piece, share, sums + from * kPanel);
      });
    }
  }
}

// Rows of T over a panel of quantised weights: each piece of it is expanded once for all of them.
// In the same order as above, so that a product has the bits that unquantised weights give it.
template <class T>
void quantized_rows(const LinearArgs& args, int64_t panel, int64_t first, int count) {
  constexpr bool kHalves = std::is_same<T, bf16>::value, kPairs = kHalves && kPairDot;
  constexpr int64_t kInputs = kPairs ? 256 : 128;  // of a piece: 16 KiB, which stay in L1
  alignas(64) float sums[kBatchRows * kPanel], weights[kInputs / (1 + kPairs) * kPanel];
  const int tiles = (count + kTileRows - 1) / kTileRows;
  for (int64_t begin = 0; begin < args.in; begin += kInputs) {
    const int64_t inputs = args.in - begin < kInputs ? args.in - begin : kInputs;
    expand<kPairs>(*args.quantized, panel, begin, inputs, weights);
    for (int t = 0; t < tiles; ++t) {
      const int from = count * t / tiles, to = count * (t + 1) / tiles;
      with_count<kTileRows>(to - from, [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        float* sum = sums + from * kPanel;
        if (begin == 0) std::memset(sum, 0, sizeof(float) * R * kPanel);
        const T* a = static_cast<const T*>(args.a) + (first + from) * args.a_stride + begin;
        if constexpr (kHalves && !kPairs) {
          float wide[R][kInputs];
          for (int r = 0; r < R; ++r) widen(a + r * args.a_stride, inputs, wide[r]);
          multiply<false, false, R>(wide[0], kInputs, weights, inputs, {}, sum);
        } else {
          multiply<kPairs, false, R>(reinterpret_cast<const float*>(a),
                                     args.a_stride / (1 + kPairs), weights, inputs / (1 + kPairs),
                                     {}, sum);
        }
        if (begin + inputs < args.in) return;
        for (int r = 0; r < R; ++r) finish_row(args, first + from + r, panel, sum + r * kPanel);
      });
    }
  }
}

// Rows in 8 bits over a panel: the products of a group are summed as integers, exactly.
template <int Bits>
void int8_panel(const LinearArgs& args, int64_t panel, int64_t first, int count) {
  const QuantizedPanels& q = *args.quantized;
  const QuantizedRows& x = *args.int8_rows;
  const bool halves = q.group < kGroup;
  alignas(64) float sums[kBatchRows * kPanel];
  std::memset(sums, 0, sizeof(float) * count * kPanel);
  const uint32_t* words = q.codes + panel * q.in / kGroup * Bits * kPanel;
  for (int64_t g = 0; g < q.in / kGroup; ++g, words += Bits * kPanel) {
    prefetch_group<Bits>(words);
    for (int lane = 0; lane < kPanel; lane += kLanes) {
      Words quads[8];
      load_quads<Bits>(words + lane, quads);
      const Affine one = affine_at(q, panel, g * kGroup, lane);
      const Affine two = halves ? affine_at(q, panel, g * kGroup + 16, lane) : one;
      int64_t at = g * x.rows + first;
      for (int r = 0; r < count; ++r, ++at) {
        const int8_t* row = x.codes + at * kGroup;
        const float left = x.sums[2 * at], right = x.sums[2 * at + 1];
        Vec sum;
        if (halves) {
          sum = fma(dot_quads<Bits, 4>(quads, row), one.scale, mul(one.offset, set1(left)));
          sum = fma(two.offset, set1(right), sum);
          sum = fma(dot_quads<Bits, 4>(quads + 4, row + 16), two.scale, sum);
        } else {
          sum = fma(dot_quads<Bits, 8>(quads, row), one.scale, mul(one.offset, set1(left + right)));
        }
        float* to = sums + r * kPanel + lane;
        store(to, fma(sum, set1(x.scales[at]), load(to)));
      }
    }
  }
  for (int r = 0; r < count; ++r) finish_row(args, first + r, panel, sums + r * kPanel);
}

void quantized_panel(const LinearArgs& args, int64_t panel, int64_t first, int count) {
  if (args.int8_rows) {
    const int bits = args.quantized->bits;
    (bits == 4   ? int8_panel<4>
     : bits == 6 ? int8_panel<6>
                 : int8_panel<8>)(args, panel, first, count);
  } else if (args.dtype == Dtype::bf16) {
    quantized_rows<bf16>(args, panel, first, count);
  } else {
    quantized_rows<float>(args, panel, first, count);
  }
}

}  // namespace

void int8_row(const void* x, Dtype dtype, int64_t in, int64_t row, const QuantizedRows& to) {
  with_type(dtype,
            [&](auto type) { quantize_row(static_cast<const decltype(type)*>(x), in, row, to); });
}

void quantized_row(const QuantizedPanels& table, int64_t row, float* out) {
  const int64_t panel = row / kPanel, lane = row % kPanel, groups = table.in / kGroup;
  for (int64_t i = 0; i < table.in; ++i) {
    const int64_t group = panel * groups + i / kGroup;
    const int64_t block = (panel * (table.in / table.block) + i / table.block) * kPanel + lane;
    const int64_t fine = (panel * (table.in / table.group) + i / table.group) * kPanel + lane;
    const uint32_t* words = table.codes + group * table.bits * kPanel + lane;
    const float code = static_cast<float>(code_of(words, table.bits, i % kGroup));
    float scale = to_float(table.scale[block]);
    if (table.mult) scale *= table.mult[fine];
    float offset = -table.zero * scale;
    if (table.offset) offset = to_float(table.offset[block]);
    if (table.offset && table.offset_mult) offset *= table.offset_mult[fine];
    out[i] = std::fma(code, scale, offset);
  }
}

void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel)
    for (int64_t first = 0; first < args.rows; first += kBatchRows) {
      const int64_t left = args.rows - first;
      const int count = left < kBatchRows ? static_cast<int>(left) : kBatchRows;
      if (args.quantized) {
        quantized_panel(args, panel, first, count);
      } else if (args.dtype == Dtype::bf16) {
        panel_rows<true>(args, panel, first, count);
      } else {
        panel_rows<false>(args, panel, first, count);
      }
    }
}

}  // namespace MF_NS
}  // namespace marco_fast
