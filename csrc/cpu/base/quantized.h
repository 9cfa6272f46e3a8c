// Quantised weights: codes of 4, 6 or 8 bits with a scale and an offset for each group of inputs.
//
// A weight is scale * mult * (code - zero) + offset * offset_mult. Scales and offsets are float16
// of blocks of inputs; mult and offset_mult, integers of smaller groups, may be absent (1). That
// holds the formats of GGUF exactly: each product and the sum are rounded once, as theirs are.
#pragma once

#include <cstdint>

#include "base/dtypes.h"

namespace marco_fast {

inline constexpr int kPanel = 32;      // outputs per panel of weights
inline constexpr int kGroup = 32;      // inputs whose codes lie together
inline constexpr int kPairWords = 16;  // inputs of one word of upper bits, of codes of 6 bits

// A matrix [out, in], panel by panel; the last panel is filled up with zeros. A group of inputs of
// a panel has `bits` rows of 32 words, one word per output. With 4 bits a word holds 8 inputs, the
// first in its lowest bits; with 8 bits 4 inputs; with 6 bits the first 4 rows hold the lower 4
// bits as with 4 bits, and 2 rows the upper 2 bits of 16 inputs each.
struct QuantizedPanels {
  const uint32_t* codes;             // [panels, in / kGroup, bits, kPanel]
  const f16 *scale, *offset;         // [panels, in / block, kPanel]; no offset: null
  const int8_t *mult, *offset_mult;  // [panels, in / group, kPanel] or null
  int bits, zero, block, group;      // group: 16 or a multiple of kGroup, as block is
  int64_t in, out;
};

// Code of input i of a group whose words lie `stride` apart.
inline uint32_t code_of(const uint32_t* words, int bits, int i, int64_t stride = kPanel) {
  if (bits == 8) return words[i / 4 * stride] >> i % 4 * 8 & 255u;
  const uint32_t low = words[i / 8 * stride] >> i % 8 * 4 & 15u;
  if (bits == 4) return low;
  return low | (words[(4 + i / kPairWords) * stride] >> i % kPairWords * 2 & 3u) << 4;
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
            packed[i / 8] |= (code & 15u) << i % 8 * 4;
            if (bits == 6) packed[4 + i / kPairWords] |= (code >> 4 & 3u) << i % kPairWords * 2;
          }
        }
        for (int w = 0; w < bits; ++w)
          words[((panel * groups + g) * bits + w) * kPanel + lane] = packed[w];
      }
    }
}

}  // namespace marco_fast
