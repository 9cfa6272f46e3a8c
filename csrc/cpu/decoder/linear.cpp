// Products with packed weights; compiled once per instruction set.
#include "decoder/linear_quantized.h"
#include "decoder/linear_tile.h"

namespace marco_fast {
namespace MF_NS {
namespace {

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

}  // namespace

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
