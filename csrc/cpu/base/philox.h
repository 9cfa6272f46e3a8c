// Philox4x32-10: random numbers as a pure function of (seed, position, purpose).
//
// key = the seed's two 32-bit halves, low first; counter = (position low, position high, purpose,
// 0). The reference in marco_fast/ops gives the same bits.
#pragma once

#include <cstdint>

namespace marco_fast {

enum class Purpose : uint32_t { token = 0 };

// A double in [0, 1): the first two output words as one number, low word first; its upper 53 bits
// times 2^-53.
inline double philox_uniform(int64_t seed, int64_t position, Purpose purpose) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  uint32_t x0 = static_cast<uint32_t>(position);
  uint32_t x1 = static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32);
  uint32_t x2 = static_cast<uint32_t>(purpose), x3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * x0, product1 = uint64_t{0xCD9E8D57u} * x2;
    x0 = static_cast<uint32_t>(product1 >> 32) ^ x1 ^ key0;
    x1 = static_cast<uint32_t>(product1);
    x2 = static_cast<uint32_t>(product0 >> 32) ^ x3 ^ key1;
    x3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  const uint64_t bits = x0 | static_cast<uint64_t>(x1) << 32;
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace marco_fast
