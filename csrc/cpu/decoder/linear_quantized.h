// Products with quantised weights, panel by panel.
//
// Included once per instruction set, like simd.h.
#pragma once

#include <type_traits>

#include "base/expand.h"
#include "base/int8_dot.h"
#include "decoder/linear_tile.h"

namespace marco_fast {
namespace MF_NS {
namespace {

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
}  // namespace MF_NS
}  // namespace marco_fast
