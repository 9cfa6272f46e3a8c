// Quantised weights: codes of 4, 6 or 8 bits with a scale and an offset for each group of inputs.
//
// A weight is scale * mult * (code - zero) + offset * offset_mult. Scales and offsets are float16
// of blocks of inputs; mult and offset_mult, integers of smaller groups, may be absent (1). That
// holds the formats of GGUF exactly: each product and the sum are rounded once, as theirs are.
#pragma once

#include <cstdint>
#include <memory>

#include "base/dtypes.h"

namespace marco_fast {

inline constexpr int kPanel = 32;       // outputs per panel of weights
inline constexpr int kGroup = 32;       // inputs whose codes lie together
inline constexpr int kHighInputs = 16;  // whose upper bits are one word, of codes of 6 bits

// A matrix [out, in], panel by panel; the last panel is filled up with zeros. A group of inputs of
// a panel has `bits` rows of 32 words, one word per output. A byte of a word belongs to one of four
// adjacent inputs. With 8 bits it is the code. With 4 bits it holds the codes of two inputs that
// are 4 apart, the first in its lower half. With 6 bits the first 4 rows hold the lower 4 bits like
// that, and 2 rows the upper 2 bits: a byte of theirs those of four inputs that are 4 apart.
struct QuantizedPanels {
  const uint32_t* codes;             // [panels, in / kGroup, bits, kPanel]
  const f16 *scale, *offset;         // [panels, in / block, kPanel]; no offset: null
  const int8_t *mult, *offset_mult;  // [panels, in / group, kPanel] or null
  int bits, zero, block, group;      // group: 16 or a multiple of kGroup, as block is
  bool
      int8_rows;  // rows are rounded to 8 bits per group (QuantizedRows) before they are multiplied
  int64_t in, out;
};

// Rows of activations in 8 bits: a number is scale * code, of the 32 of a group that begin
// together.
struct QuantizedRows {
  int8_t* codes;  // [in / kGroup, rows, kGroup], -127 to 127
  float* scales;  // [in / kGroup, rows]; NaN where one of the numbers is not finite
  float* sums;    // [in / kGroup, rows, 2], of the codes of half a group
  int64_t rows;
};

// Memory of so many of them.
struct Int8Memory {
  Int8Memory(int64_t count, int64_t in)
      : codes(new int8_t[count * in]),
        scales(new float[count * in / kGroup]),
        sums(new float[2 * count * in / kGroup]),
        rows{codes.get(), scales.get(), sums.get(), count} {}
  const std::unique_ptr<int8_t[]> codes;
  const std::unique_ptr<float[]> scales, sums;
  const QuantizedRows rows;
};

// Where the lower 4 and the upper 2 bits of input i of a group are in their words.
constexpr int nibble_shift(int i) { return i % 4 * 8 + i / 4 % 2 * 4; }
constexpr int high_shift(int i) { return i % 4 * 8 + i / 4 % 4 * 2; }

// Code of input i of a group.
inline uint32_t code_of(const uint32_t* words, int bits, int i) {
  if (bits == 8) return words[i / 4 * kPanel] >> i % 4 * 8 & 255u;
  const uint32_t low = words[i / 8 * kPanel] >> nibble_shift(i) & 15u;
  if (bits == 4) return low;
  return low | (words[(4 + i / kHighInputs) * kPanel] >> high_shift(i) & 3u) << 4;
}

// Panels [begin, end) of the words of codes [out, in].
inline void pack_codes(const uint8_t* codes, int64_t out, int64_t in, int bits, int64_t begin,
                       int64_t end, uint32_t* words) {
  const int64_t groups = in / kGroup;
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      const int64_t row = panel * kPanel + lane;
      for (int64_t g = 0; g < groups; ++g) {
        uint32_t packed[8] = {};
        for (int i = 0; row < out && i < kGroup; ++i) {
          const uint32_t code = codes[row * in + g * kGroup + i];
          if (bits == 8) {
            packed[i / 4] |= code << i % 4 * 8;
          } else {
            packed[i / 8] |= (code & 15u) << nibble_shift(i);
            if (bits == 6) packed[4 + i / kHighInputs] |= (code >> 4 & 3u) << high_shift(i);
          }
        }
        for (int w = 0; w < bits; ++w)
          words[((panel * groups + g) * bits + w) * kPanel + lane] = packed[w];
      }
    }
}

}  // namespace marco_fast
