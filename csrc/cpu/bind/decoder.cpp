// The decoder of marco_fast._C: addresses of weights and caches in, hidden states out.
//
// Python keeps every tensor alive and has checked types and shapes (engine/decoder.py); what may differ
// from step to step is checked here, before anything is written.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "decoder/decoder.h"

namespace py = pybind11;

namespace marco_fast {

extern int g_isa;  // bind/module.cpp

namespace {

using Address = uintptr_t;

template <class T>
const T* at(Address address) {
  return reinterpret_cast<const T*>(address);
}

constexpr DecoderKernels kDecoder[] = {
#define MF_KERNELS(isa) \
  {&isa::linear, &isa::norm_rows, &isa::rope_rows, &isa::embed_row, &isa::tree_attention},
    MF_FOR_EACH_ISA(MF_KERNELS)
#undef MF_KERNELS
};

using Matrix = std::array<int64_t, 4>;  // addresses of panels and bias (0: none), in, out

Weights weights(const Matrix& m) {
  return {at<void>(m[0]), at<float>(m[1]), m[2], m[3]};
}

// sizes: dtype, hidden, intermediate, vocabulary, heads, kv_heads, head_dim; cache: pages, page_size and
// strides of a page and a head in elements.
Decoder make_decoder(const std::array<int64_t, 7>& sizes, const std::array<int64_t, 4>& cache,
                     float eps, Address embedding, Address norm) {
  Decoder d{};
  d.dtype = static_cast<Dtype>(sizes[0]);
  d.hidden = sizes[1], d.intermediate = sizes[2], d.vocabulary = sizes[3];
  d.heads = int(sizes[4]), d.kv_heads = int(sizes[5]), d.head_dim = int(sizes[6]);
  d.pages = cache[0], d.page_size = cache[1], d.stride_page = cache[2], d.stride_head = cache[3];
  d.eps = eps;
  d.embedding = at<void>(embedding), d.norm = at<float>(norm);
  return d;
}

// matrices: qkv, attention output, gates and values, MLP output; norms: before attention, before the
// MLP, of q's and of k's heads (0: none); caches: of K and of V.
void add_layer(Decoder& d, const std::array<Matrix, 4>& matrices,
               const std::array<Address, 4>& norms, const std::array<Address, 2>& caches,
               float scale) {
  d.layers.push_back({weights(matrices[0]), weights(matrices[1]), weights(matrices[2]),
                      weights(matrices[3]), at<float>(norms[0]), at<float>(norms[1]),
                      at<float>(norms[2]), at<float>(norms[3]), scale,
                      reinterpret_cast<void*>(caches[0]), reinterpret_cast<void*>(caches[1])});
}

void check_range(const char* name, const int64_t* values, int64_t rows, int64_t low, int64_t end) {
  for (int64_t i = 0; i < rows; ++i)
    if (values[i] < low || values[i] >= end)
      throw py::index_error("expected " + std::string(name) + "[" + std::to_string(i) + "] in " +
                            std::to_string(low) + ".." + std::to_string(end - 1) + ", got " +
                            std::to_string(values[i]));
}

void run_step(const Decoder& d, Address token_ids, Address positions, Address slots, int64_t rows,
              Address cos, Address sin, int64_t num_positions, const TreePlan& plan, Address hidden,
              int threads) {
  const DecoderStep step{at<int64_t>(token_ids), at<int64_t>(positions), at<int64_t>(slots), rows,
                         at<float>(cos), at<float>(sin), &plan, reinterpret_cast<void*>(hidden)};
  if (rows != int64_t(plan.query_order.size()) || plan.num_pages_needed > d.pages)
    throw py::value_error("expected as many rows as the plan has queries, and its pages");
  check_range("token_ids", step.token_ids, rows, 0, d.vocabulary);
  check_range("positions", step.positions, rows, 0, num_positions);
  check_range("slots", step.slots, rows, -1, d.pages * d.page_size);
  if (rows == 0) return;
  py::gil_scoped_release release;
  DecoderRun(d, kDecoder[g_isa], step, threads).run();
}

// For the tests: one product, as LinearArgs has it.
void run_linear(Address a, int64_t rows, const Matrix& matrix, int dtype, Address result,
                bool accumulate, Address gated, int threads) {
  const Weights w = weights(matrix);
  const LinearArgs args{at<void>(a), w.in, w.panels, w.bias, rows, w.in, w.out,
                        static_cast<Dtype>(dtype), reinterpret_cast<float*>(result), accumulate,
                        reinterpret_cast<void*>(gated), w.out / 2};
  const int64_t panels = (w.out + kPanel - 1) / kPanel;
  py::gil_scoped_release release;
  parallel(threads, [&](int thread, int size) {
    kDecoder[g_isa].linear(args, panels * thread / size, panels * (thread + 1) / size);
  });
}

}  // namespace

void bind_decoder(py::module_& m) {
  py::class_<Decoder>(m, "Decoder", "Addresses of a model's weights and caches; see engine/decoder.py.")
      .def(py::init(&make_decoder))
      .def("add_layer", &add_layer)
      .def("step", &run_step);
  m.def("linear", &run_linear);
}

}  // namespace marco_fast
