// A decoder layer without its attention: products with packed weights, RMSNorm, RoPE.
//
// Every row is computed by itself and in one order, so its bits depend neither on the other rows of
// the batch nor on the number of threads.
#pragma once

#include <cstdint>

#include "base/dtypes.h"
#include "base/isa.h"
#include "base/quantized.h"

namespace marco_fast {

// A matrix [out, in] is stored panel by panel. A panel holds, for each input (in bfloat16: for each
// pair of inputs), the weights of kPanel outputs; the last panel is filled up with zeros. Quantised
// weights lie as base/quantized.h says; with them `panels` is null.
struct LinearArgs {
  const void* a;     // [rows, in] of `dtype`
  int64_t a_stride;  // in elements, as all strides here
  const void* panels;
  const QuantizedPanels* quantized;
  const QuantizedRows* int8_rows;  // the rows in place of a, where weights want them so
  const float* bias;               // of `out` outputs, filled up to whole panels; or null
  int64_t rows, in, out;
  Dtype dtype;  // float32 or bfloat16, of a, panels and gated; quantised weights have their own
  // If `gated` is null, the products replace `result`, or are added to it. Otherwise each panel
  // holds 16 gates g and their 16 values u, and gated [rows, out / 2] becomes u * g / (1 + e^-g).
  float* result;  // [rows, out], rows `result_stride` apart
  int64_t result_stride;
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
  const float* qkv;  // [rows, (num_heads + 2 * num_kv_heads) * head_dim]
  int num_heads, num_kv_heads, head_dim;
  const float* cos;  // [positions, head_dim]
  const float* sin;
  const int64_t* positions;  // [rows]
  const float* q_norm;       // [head_dim], weights of an RMSNorm of each head before RoPE; or null
  const float* k_norm;
  float eps;
  Dtype dtype;  // of q and the caches
  void* q;      // [rows, num_heads, head_dim]
  void* k_cache;
  void* v_cache;
  int64_t k_stride_page, k_stride_head, v_stride_page, v_stride_head, page_size;
  const int64_t* slot_mapping;  // [rows], -1: not stored
};

#define MF_DECLARE(isa)                                                                        \
  namespace isa {                                                                              \
  void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end);                 \
  void norm_rows(const NormArgs& args, int64_t row_begin, int64_t row_end);                    \
  void rope_rows(const RopeArgs& args, int64_t row_begin, int64_t row_end);                    \
  void embed_row(const void* table, Dtype dtype, int64_t row, int64_t size, float* out);       \
  void int8_row(const void* x, Dtype dtype, int64_t in, int64_t row, const QuantizedRows& to); \
  void quantized_row(const QuantizedPanels& table, int64_t row, float* out);                   \
  }
MF_FOR_EACH_ISA(MF_DECLARE)
#undef MF_DECLARE

}  // namespace marco_fast
