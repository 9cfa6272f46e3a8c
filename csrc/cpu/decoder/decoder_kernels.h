// The parts of a decoder layer around attention: matrix products over packed weights, RMSNorm, RoPE.
//
// Every row is computed by itself and in one order, so its bits depend neither on the other rows of the
// batch nor on the number of threads.
#pragma once

#include <cstdint>

#include "base/dtypes.h"
#include "base/isa.h"

namespace marco_fast {

// Columns of a panel of weights. A matrix [out, in] is stored panel by panel: for every input (for every
// pair of inputs, in bfloat16) the weights of 32 outputs, the last panel filled up with zeros.
inline constexpr int kPanel = 32;

struct LinearArgs {
  const void* a;  // [rows, in] of `dtype`
  int64_t a_stride;  // elements from row to row, as all strides here
  const void* panels;
  const float* bias;  // a multiple of kPanel, or null
  int64_t rows, in, out;
  Dtype dtype;  // float32 or bfloat16, of a, panels and gated
  // What becomes of the products: `result` is replaced, or added to; or, where `gated` is not null, the
  // panels hold 16 gates g and 16 values u each, and gated [rows, out / 2] is u * g / (1 + e^-g).
  float* result;  // [rows, out]
  bool accumulate;
  void* gated;
  int64_t gated_stride;
};

struct NormArgs {
  const float* x;  // [rows, size]
  const float* weight;
  float eps;
  int64_t size;  // a multiple of 16
  Dtype dtype;
  void* out;  // [rows, size]
  int64_t out_stride;
};

struct RopeArgs {
  const float* qkv;  // [rows, (heads + 2 * kv_heads) * head_dim]
  int heads, kv_heads, head_dim;
  const float* cos;  // [positions, head_dim]
  const float* sin;
  const int64_t* positions;  // [rows]
  const float* q_norm;       // [head_dim] or null: weights of an RMSNorm of each head before RoPE
  const float* k_norm;
  float eps;
  Dtype dtype;  // of q and the caches
  void* q;      // [rows, heads, head_dim]
  void* k_cache;
  void* v_cache;
  int64_t k_stride_page, k_stride_head, v_stride_page, v_stride_head, page_size;  // elements
  const int64_t* slots;  // [rows], -1: not stored
};

#define MF_DECLARE(isa)                                                                   \
  namespace isa {                                                                         \
  void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end);            \
  void norm_rows(const NormArgs& args, int64_t row_begin, int64_t row_end);               \
  void rope_rows(const RopeArgs& args, int64_t row_begin, int64_t row_end);               \
  void embed_row(const void* table, Dtype dtype, int64_t row, int64_t size, float* out); \
  }
MF_FOR_EACH_ISA(MF_DECLARE)
#undef MF_DECLARE

}  // namespace marco_fast
