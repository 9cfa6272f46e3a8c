// A decoder of the Llama family up to its LM head, one call per step: RMSNorm, attention with RoPE
// over a paged tree, gated MLP.
//
// A Decoder holds addresses only. Python keeps the weights alive, packed as decoder_kernels.h says.
// Activations between the products are float32; the factors of products are rounded to the type of
// the weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/schedule.h"
#include "base/parallel.h"
#include "decoder/decoder_kernels.h"

namespace marco_fast {

// A linear layer: its panels of weights (decoder_kernels.h), its bias or null, its sizes. Quantised
// weights have no panels and are in `quantized`.
struct PackedLinear {
  const void* panels;
  QuantizedPanels quantized;
  const float* bias;
  int64_t in, out;
};

struct DecoderLayer {
  std::vector<PackedLinear>
      qkv;  // side by side: weights of several kinds are products of their own
  PackedLinear attention_out, gate_up, down;
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
  float scale;  // of the attention scores
  void *k_cache, *v_cache;
};

struct Decoder {
  Dtype dtype;  // of caches, and of weights and an embedding that are not quantised
  int64_t hidden_size, intermediate_size, vocab_size;
  int num_heads, num_kv_heads, head_dim;
  float eps;
  const void* embedding;  // [vocab_size, hidden_size]; null: in `quantized_embedding`
  QuantizedPanels quantized_embedding;
  const float* norm;
  // Of every layer's K and V cache; strides in elements.
  int64_t num_pages, page_size, stride_page, stride_head;
  std::vector<DecoderLayer> layers;
};

struct DecoderStep {
  const int64_t *token_ids, *positions, *slot_mapping;  // [rows]
  int64_t rows;
  const float *cos, *sin;  // [positions, head_dim]
  const TreePlan* plan;    // row i belongs to the caller's query i
  void* hidden;  // output [rows, hidden_size] of the model's type; null: only K and V are wanted
};

struct DecoderKernels {
  void (*linear)(const LinearArgs&, int64_t panel_begin, int64_t panel_end);
  void (*norm_rows)(const NormArgs&, int64_t row_begin, int64_t row_end);
  void (*rope_rows)(const RopeArgs&, int64_t row_begin, int64_t row_end);
  void (*embed_row)(const void* table, Dtype dtype, int64_t row, int64_t size, float* out);
  void (*int8_row)(const void* x, Dtype dtype, int64_t in, int64_t row, const QuantizedRows& to);
  void (*quantized_row)(const QuantizedPanels& table, int64_t row, float* out);
  TreeAttentionKernel tree_attention;
};

// One step: the memory of its activations, and the order of its kernels.
class DecodePass {
 public:
  DecodePass(const Decoder& model, const DecoderKernels& kernels, const DecoderStep& step,
             int threads)
      : model_(model), kernels_(kernels), step_(step), threads_(threads) {
    const int64_t item = model.dtype == Dtype::bf16 ? 2 : 4, rows = step.rows;
    const int64_t queries = model.num_heads * model.head_dim;
    // One cache line longer than a row: rows 4 KiB apart would compete for few cache lines.
    wide_ = std::max(model.hidden_size, queries) + 64 / item;
    gated_wide_ = model.intermediate_size + 64 / item;
    const int64_t words =
        threads * thread_words(rows, model.num_heads / model.num_kv_heads, model.head_dim);
    const int64_t most = std::max({model.hidden_size, queries, model.intermediate_size});
    const auto reserve = [&](int64_t bytes) {
      const int64_t at = size_;
      size_ += (bytes + 63) / 64 * 64;
      return at;
    };
    const int64_t x = reserve(4 * rows * model.hidden_size), a = reserve(item * rows * wide_),
                  qkv = reserve(4 * rows * (model.num_heads + 2 * model.num_kv_heads) *
                                model.head_dim),
                  q = reserve(item * rows * queries), lse = reserve(4 * rows * model.num_heads),
                  gated = reserve(item * rows * gated_wide_), int8 = reserve(rows * most),
                  scales = reserve(4 * rows * most / kGroup),
                  sums = reserve(8 * rows * most / kGroup), scratch = reserve(4 * words);
    memory_.reset(new char[size_ + 64]);
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t{63};
    const auto at = [begin](int64_t offset) { return reinterpret_cast<float*>(begin + offset); };
    x_ = at(x), a_ = at(a), qkv_ = at(qkv), q_ = at(q), lse_ = at(lse);
    gated_ = at(gated), scratch_ = at(scratch);
    int8_ = {reinterpret_cast<int8_t*>(at(int8)), at(scales), at(sums), rows};
  }

  void run() {
    for (int64_t row = 0; row < step_.rows; ++row) embed(row);
    for (const DecoderLayer& layer : model_.layers) {
      norm(layer.attention_norm, a_, wide_);
      project(layer);
      rope(layer);
      attend(layer);
      linear(a_, wide_, layer.attention_out, x_, model_.hidden_size, true);
      norm(layer.mlp_norm, a_, wide_);
      linear(a_, wide_, layer.gate_up, nullptr, 0, false, gated_);
      linear(gated_, gated_wide_, layer.down, x_, model_.hidden_size, true);
    }
    if (step_.hidden != nullptr) norm(model_.norm, step_.hidden, model_.hidden_size);
  }

 private:
  // Calls f(begin, end) for parts of `count` panels or rows. A part has at least `least` of the
  // `work` (products), and a thread has at most four parts.
  template <class F>
  void share(int64_t count, double work, double least, F&& f) {
    const double most = threads_ == 1 ? 1 : 4 * threads_;
    const double parts = std::min({work / least, double(count), most});
    parallel(threads_, std::max(1, static_cast<int>(parts)),
             [&](int part, int all) { f(count * part / all, count * (part + 1) / all); });
  }

  void embed(int64_t row) {
    const int64_t token = step_.token_ids[row];
    float* x = x_ + row * model_.hidden_size;
    if (model_.embedding) {
      kernels_.embed_row(model_.embedding, model_.dtype, token, model_.hidden_size, x);
    } else {
      kernels_.quantized_row(model_.quantized_embedding, token, x);
    }
  }

  void project(const DecoderLayer& layer) {
    const int64_t stride = (model_.num_heads + 2 * model_.num_kv_heads) * model_.head_dim;
    int64_t column = 0;
    for (const PackedLinear& part : layer.qkv) {
      linear(a_, wide_, part, qkv_ + column, stride, false);
      column += part.out;
    }
  }

  void linear(const void* a, int64_t stride, const PackedLinear& w, float* result,
              int64_t result_stride, bool accumulate, void* gated = nullptr) {
    LinearArgs args{};
    args.a = a, args.a_stride = stride, args.panels = w.panels, args.bias = w.bias;
    args.quantized = w.panels ? nullptr : &w.quantized;
    args.rows = step_.rows, args.in = w.in, args.out = w.out, args.dtype = model_.dtype;
    args.result = result, args.result_stride = result_stride, args.accumulate = accumulate;
    args.gated = gated, args.gated_stride = gated_wide_;
    if (args.quantized && w.quantized.int8_rows) {
      round_rows(a, stride, w.in);
      args.int8_rows = &int8_;
    }
    share((w.out + kPanel - 1) / kPanel, double(step_.rows) * w.in * w.out, 100e3,
          [&](int64_t begin, int64_t end) { kernels_.linear(args, begin, end); });
  }

  // Rows of a in 8 bits, for weights that are multiplied so.
  void round_rows(const void* a, int64_t stride, int64_t in) {
    const int64_t item = model_.dtype == Dtype::bf16 ? 2 : 4;
    share(step_.rows, double(step_.rows) * in, 50e3, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        kernels_.int8_row(static_cast<const char*>(a) + row * stride * item, model_.dtype, in, row,
                          int8_);
    });
  }

  void norm(const float* weight, void* out, int64_t stride) {
    const NormArgs args{x_, weight, model_.eps, model_.hidden_size, model_.dtype, out, stride};
    share(step_.rows, double(step_.rows) * model_.hidden_size, 50e3,
          [&](int64_t begin, int64_t end) { kernels_.norm_rows(args, begin, end); });
  }

  void rope(const DecoderLayer& layer) {
    RopeArgs args{};
    args.qkv = qkv_;
    args.num_heads = model_.num_heads, args.num_kv_heads = model_.num_kv_heads,
    args.head_dim = model_.head_dim;
    args.cos = step_.cos, args.sin = step_.sin, args.positions = step_.positions;
    args.q_norm = layer.q_norm, args.k_norm = layer.k_norm, args.eps = model_.eps;
    args.dtype = model_.dtype, args.q = q_;
    args.k_cache = layer.k_cache, args.v_cache = layer.v_cache;
    args.k_stride_page = args.v_stride_page = model_.stride_page;
    args.k_stride_head = args.v_stride_head = model_.stride_head;
    args.page_size = model_.page_size, args.slot_mapping = step_.slot_mapping;
    share(step_.rows, double(step_.rows) * model_.num_heads * model_.head_dim, 20e3,
          [&](int64_t begin, int64_t end) { kernels_.rope_rows(args, begin, end); });
  }

  void attend(const DecoderLayer& layer) {
    const TreePlan& plan = *step_.plan;
    TreeAttentionArgs a{};
    a.q = q_, a.k = layer.k_cache, a.v = layer.v_cache, a.out = a_, a.lse = lse_;
    a.q_stride_query = int64_t(model_.num_heads) * model_.head_dim, a.out_stride_query = wide_;
    a.q_stride_head = a.out_stride_head = model_.head_dim;
    a.k_stride_page = a.v_stride_page = model_.stride_page;
    a.k_stride_head = a.v_stride_head = model_.stride_head;
    a.lse_stride_query = model_.num_heads, a.lse_stride_head = 1;
    a.dtype = model_.dtype, a.scale = layer.scale;
    a.group = model_.num_heads / model_.num_kv_heads, a.head_dim = model_.head_dim;
    a.page_size = static_cast<int>(model_.page_size);
    set_plan(plan, &a);
    run_tree_attention(kernels_.tree_attention, a, plan, model_.num_kv_heads, threads_, scratch_);
  }

  const Decoder& model_;
  const DecoderKernels& kernels_;
  const DecoderStep& step_;
  const int threads_;
  int64_t size_ = 0, wide_, gated_wide_;
  std::unique_ptr<char[]> memory_;
  // x and qkv are float32; a, q and gated have the model's type.
  float *x_, *a_, *qkv_, *q_, *lse_, *gated_, *scratch_;
  QuantizedRows int8_;
};

}  // namespace marco_fast
