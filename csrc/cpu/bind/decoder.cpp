// The decoder of marco_fast._C: addresses of weights and caches in, hidden states out.
//
// Python keeps every tensor alive and has checked types and shapes. What may differ from step to
// step is checked here, before anything is written.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "bind/bind.h"
#include "decoder/decoder.h"

namespace py = pybind11;

namespace marco_fast {
namespace {

constexpr DecoderKernels kDecoder[] = {
#define MF_KERNELS(isa)                                                       \
  {&isa::linear,   &isa::norm_rows,     &isa::rope_rows,     &isa::embed_row, \
   &isa::int8_row, &isa::quantized_row, &isa::tree_attention},
    MF_FOR_EACH_ISA(MF_KERNELS)
#undef MF_KERNELS
};

PackedLinear make_linear(Address panels, Address bias, int64_t inputs, int64_t outputs) {
  return {at<void>(panels), {}, at<float>(bias), inputs, outputs};
}

PackedLinear make_quantized_linear(const QuantizedPanels& weights, Address bias) {
  return {nullptr, weights, at<float>(bias), weights.in, weights.out};
}

// `tensors`: addresses of codes, scale, offset, mult and offset_mult, 0 where there is none.
QuantizedPanels make_quantized(const std::array<Address, 5>& tensors, int bits, int zero,
                               int64_t block, int64_t group, bool int8_rows, int64_t inputs,
                               int64_t outputs) {
  QuantizedPanels q{};
  q.codes = at<uint32_t>(tensors[0]), q.scale = at<f16>(tensors[1]);
  q.offset = at<f16>(tensors[2]), q.mult = at<int8_t>(tensors[3]);
  q.offset_mult = at<int8_t>(tensors[4]);
  q.bits = bits, q.zero = zero, q.block = block, q.group = group;
  q.int8_rows = int8_rows, q.in = inputs, q.out = outputs;
  return q;
}

void pack(Address codes, int64_t outputs, int64_t inputs, int bits, Address words, int threads) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  py::gil_scoped_release release;
  parallel(threads, [&](int thread, int size) {
    pack_codes(at<uint8_t>(codes), outputs, inputs, bits, panels * thread / size,
               panels * (thread + 1) / size, at<uint32_t>(words));
  });
}

// Some rows of the weights as float32 [rows, in].
void quantized_rows(const QuantizedPanels& q, const Tensor<1>& rows, Address out, int threads) {
  const int64_t* ids = at<int64_t>(rows.address);
  const int64_t count = rows.size[0];
  check_range("rows", ids, count, 0, q.out);
  py::gil_scoped_release release;
  parallel(threads, [&](int thread, int size) {
    for (int64_t i = count * thread / size; i < count * (thread + 1) / size; ++i)
      kDecoder[g_isa].quantized_row(q, ids[i], at<float>(out) + i * q.in);
  });
}

// `cache` stands for the K and the V cache of every layer: its sizes and strides are theirs.
// An embedding whose address is 0 is in `quantized`.
Decoder make_decoder(int dtype, const Tensor<2>& embedding, const QuantizedPanels& quantized,
                     int64_t intermediate_size, int num_heads, const Tensor<4>& cache, Address norm,
                     float eps) {
  Decoder d{};
  d.dtype = static_cast<Dtype>(dtype);
  d.quantized_embedding = quantized;
  d.vocab_size = embedding.size[0], d.hidden_size = embedding.size[1];
  d.intermediate_size = intermediate_size;
  d.num_heads = num_heads, d.num_kv_heads = static_cast<int>(cache.size[1]);
  d.head_dim = static_cast<int>(cache.size[3]);
  d.num_pages = cache.size[0], d.page_size = cache.size[2];
  d.stride_page = cache.stride[0], d.stride_head = cache.stride[1];
  d.eps = eps;
  d.embedding = at<void>(embedding.address), d.norm = at<float>(norm);
  return d;
}

void add_layer(Decoder& d, const std::vector<PackedLinear>& qkv, const PackedLinear& attention_out,
               const PackedLinear& gate_up, const PackedLinear& down, Address attention_norm,
               Address mlp_norm, Address q_norm, Address k_norm, float scale, Address k_cache,
               Address v_cache) {
  d.layers.push_back({qkv, attention_out, gate_up, down, at<float>(attention_norm),
                      at<float>(mlp_norm), at<float>(q_norm), at<float>(k_norm), scale,
                      at<void>(k_cache), at<void>(v_cache)});
}

void run_step(const Decoder& d, const Tensor<1>& token_ids, Address positions, Address slot_mapping,
              const Tensor<2>& cos, Address sin, const TreePlan& plan, Address hidden,
              int threads) {
  const int64_t rows = token_ids.size[0];
  DecoderStep step{};
  step.token_ids = at<int64_t>(token_ids.address), step.positions = at<int64_t>(positions);
  step.slot_mapping = at<int64_t>(slot_mapping), step.rows = rows;
  step.cos = at<float>(cos.address), step.sin = at<float>(sin);
  step.plan = &plan, step.hidden = at<void>(hidden);
  if (rows != int64_t(plan.query_order.size()) || plan.num_pages_needed > d.num_pages)
    throw py::value_error("expected as many rows as the plan has queries, and its pages");
  check_range("token_ids", step.token_ids, rows, 0, d.vocab_size);
  check_range("positions", step.positions, rows, 0, cos.size[0]);
  check_range("slots", step.slot_mapping, rows, -1, d.num_pages * d.page_size);
  if (rows == 0) return;
  py::gil_scoped_release release;
  DecodePass(d, kDecoder[g_isa], step, threads).run();
}

// For the tests: one product of a [rows, in], as LinearArgs describes it; one of `result` and
// `gated` is 0.
void run_linear(const PackedLinear& w, const Tensor<2>& a, int dtype, Address result,
                bool accumulate, Address gated, int threads) {
  LinearArgs args{};
  args.a = at<void>(a.address), args.a_stride = a.stride[0];
  args.panels = w.panels, args.bias = w.bias;
  args.quantized = w.panels ? nullptr : &w.quantized;
  args.rows = a.size[0], args.in = w.in, args.out = w.out;
  args.dtype = static_cast<Dtype>(dtype);
  args.result = at<float>(result), args.result_stride = w.out, args.accumulate = accumulate;
  args.gated = at<void>(gated), args.gated_stride = w.out / 2;
  const int64_t panels = (w.out + kPanel - 1) / kPanel;
  py::gil_scoped_release release;
  const Int8Memory memory(args.quantized && w.quantized.int8_rows ? args.rows : 0, args.in);
  if (memory.rows.rows > 0) {
    args.int8_rows = &memory.rows;
    const int64_t item = args.dtype == Dtype::bf16 ? 2 : 4;
    for (int64_t row = 0; row < args.rows; ++row)
      kDecoder[g_isa].int8_row(static_cast<const char*>(args.a) + row * args.a_stride * item,
                               args.dtype, args.in, row, memory.rows);
  }
  parallel(threads, [&](int thread, int size) {
    kDecoder[g_isa].linear(args, panels * thread / size, panels * (thread + 1) / size);
  });
}

}  // namespace

void bind_decoder(py::module_& m) {
  py::class_<PackedLinear>(m, "PackedLinear", "Addresses of packed weights and bias, and sizes.")
      .def(py::init(&make_linear), py::kw_only(), py::arg("panels"), py::arg("bias"),
           py::arg("inputs"), py::arg("outputs"))
      .def(py::init(&make_quantized_linear), py::arg("weights"), py::kw_only(), py::arg("bias"));
  py::class_<QuantizedPanels>(m, "QuantizedPanels", "Addresses of quantised weights, and sizes.")
      .def(py::init<>())
      .def(py::init(&make_quantized), py::arg("tensors"), py::kw_only(), py::arg("bits"),
           py::arg("zero"), py::arg("block"), py::arg("group"), py::arg("int8_rows"),
           py::arg("inputs"), py::arg("outputs"))
      .def("rows", &quantized_rows, py::arg("rows"), py::kw_only(), py::arg("out"),
           py::arg("threads"));
  m.def("pack_codes", &pack, py::arg("codes"), py::kw_only(), py::arg("outputs"), py::arg("inputs"),
        py::arg("bits"), py::arg("words"), py::arg("threads"));
  py::class_<Decoder>(m, "Decoder", "Addresses of a model's weights and caches.")
      .def(py::init(&make_decoder), py::kw_only(), py::arg("dtype"), py::arg("embedding"),
           py::arg("quantized_embedding"), py::arg("intermediate_size"), py::arg("num_heads"),
           py::arg("cache"), py::arg("norm"), py::arg("eps"))
      .def("add_layer", &add_layer, py::kw_only(), py::arg("qkv"), py::arg("attention_out"),
           py::arg("gate_up"), py::arg("down"), py::arg("attention_norm"), py::arg("mlp_norm"),
           py::arg("q_norm"), py::arg("k_norm"), py::arg("scale"), py::arg("k_cache"),
           py::arg("v_cache"))
      .def("step", &run_step, py::arg("token_ids"), py::kw_only(), py::arg("positions"),
           py::arg("slot_mapping"), py::arg("cos"), py::arg("sin"), py::arg("plan"),
           py::arg("hidden"), py::arg("threads"));
  m.def("linear", &run_linear, py::arg("linear"), py::arg("a"), py::kw_only(), py::arg("dtype"),
        py::arg("result"), py::arg("accumulate"), py::arg("gated"), py::arg("threads"));
}

}  // namespace marco_fast
