// Steps of a decoder layer that treat each row by itself; compiled once per instruction set.
#include <cmath>

#include "base/int8_dot.h"
#include "base/simd.h"
#include "decoder/decoder_kernels.h"

namespace marco_fast {
namespace MF_NS {
namespace {

constexpr int kLanes = Vec::kLanes;

template <class T>
void norm_row(const float* weight, float eps, int64_t size, const float* x, T* out) {
  Vec sum = set1(0.0f);
  for (int64_t i = 0; i < size; i += kLanes) sum = fma(load(x + i), load(x + i), sum);
  const Vec factor = set1(1.0f / std::sqrt(reduce_add(sum) / size + eps));
  for (int64_t i = 0; i < size; i += kLanes)
    store(out + i, mul(mul(load(x + i), factor), load(weight + i)));
}

template <class T>
void convert(const float* from, int size, T* to) {
  for (int i = 0; i < size; i += kLanes) store(to + i, load(from + i));
}

// One head: RMSNorm if `norm` holds its weights, then RoPE (arXiv 2104.09864), which rotates
// elements i and i + half together.
template <class T>
void rope_head(const RopeArgs& args, const float* x, const float* norm, int64_t position, T* out) {
  float normed[256], turned[256];
  const int size = args.head_dim, half = size / 2;
  if (norm) {
    norm_row(norm, args.eps, size, x, normed);
    x = normed;
  }
  const float* cos = args.cos + position * size;
  const float* sin = args.sin + position * size;
  for (int i = 0; i < half; ++i) turned[i] = x[i] * cos[i] - x[half + i] * sin[i];
  for (int i = half; i < size; ++i) turned[i] = x[i] * cos[i] + x[i - half] * sin[i];
  convert(turned, size, out);
}

template <class T>
void rope_row(const RopeArgs& args, int64_t row) {
  const int size = args.head_dim;
  const float* x = args.qkv + row * (args.num_heads + 2 * args.num_kv_heads) * size;
  T* q = static_cast<T*>(args.q) + row * args.num_heads * size;
  const int64_t position = args.positions[row], slot = args.slot_mapping[row];
  for (int h = 0; h < args.num_heads; ++h, x += size)
    rope_head(args, x, args.q_norm, position, q + h * size);
  if (slot < 0) return;
  const int64_t page = slot / args.page_size, offset = slot % args.page_size * size;
  T* k = static_cast<T*>(args.k_cache) + page * args.k_stride_page + offset;
  T* v = static_cast<T*>(args.v_cache) + page * args.v_stride_page + offset;
  for (int h = 0; h < args.num_kv_heads; ++h, x += size)
    rope_head(args, x, args.k_norm, position, k + h * args.k_stride_head);
  for (int h = 0; h < args.num_kv_heads; ++h, x += size)
    convert(x, size, v + h * args.v_stride_head);
}

}  // namespace

void norm_rows(const NormArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* x = args.x + row * args.size;
    if (args.dtype == Dtype::bf16) {
      norm_row(args.weight, args.eps, args.size, x,
               static_cast<bf16*>(args.out) + row * args.out_stride);
    } else {
      norm_row(args.weight, args.eps, args.size, x,
               static_cast<float*>(args.out) + row * args.out_stride);
    }
  }
}

void rope_rows(const RopeArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    if (args.dtype == Dtype::bf16) {
      rope_row<bf16>(args, row);
    } else {
      rope_row<float>(args, row);
    }
  }
}

void embed_row(const void* table, Dtype dtype, int64_t row, int64_t size, float* out) {
  for (int64_t i = 0; i < size; i += kLanes) {
    if (dtype == Dtype::bf16) {
      store(out + i, load(static_cast<const bf16*>(table) + row * size + i));
    } else {
      store(out + i, load(static_cast<const float*>(table) + row * size + i));
    }
  }
}

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

}  // namespace MF_NS
}  // namespace marco_fast
