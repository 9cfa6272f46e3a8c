// Element types of the tensors, as plain data that every instruction set shares.
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

// A read-only 2-D view: rows of `cols` contiguous elements, `stride` elements apart.
struct RowsView {
  const void* data;
  Dtype dtype;
  int64_t rows;
  int64_t cols;
  int64_t stride;
};

}  // namespace marco_fast
