// Element types of the tensors, as data that every instruction set shares.
#pragma once

#include <cstdint>

namespace marco_fast {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

}  // namespace marco_fast
