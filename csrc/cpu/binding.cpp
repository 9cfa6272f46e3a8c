// The Python module marco_fast._C: checks buffers, releases the GIL, dispatches by instruction set.
//
// The only file that knows Python. Arrays arrive as NumPy views of torch tensors, bfloat16 as uint16;
// every array argument is noconvert(), or pybind11 would write results into a converted copy.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "append_kv.h"
#include "array.h"
#include "isa.h"
#include "parallel.h"
#include "philox.h"
#include "topk_confidence.h"
#include "tree_plan.h"
#include "tree_schedule.h"

namespace py = pybind11;

namespace marco_fast {
namespace {

int g_isa = best_isa();  // set_isa() changes it, for tests and for comparing instruction sets

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < kNumIsas; ++i)
    if (isas()[i].supported) names.emplace_back(isas()[i].name);
  return names;
}

void set_isa(const std::string& name) {
  for (int i = 0; i < kNumIsas; ++i)
    if (isas()[i].supported && name == isas()[i].name) {
      g_isa = i;
      return;
    }
  std::string known;
  for (const std::string& each : supported_isas()) known += " " + each;
  throw std::invalid_argument("expected an instruction set of this CPU (" + known.substr(1) +
                              "), got " + name);
}

constexpr TreeAttentionKernel kTreeAttention[] = {
#define MF_KERNEL(isa) &isa::tree_attention,
    MF_FOR_EACH_ISA(MF_KERNEL)
#undef MF_KERNEL
};

using Int64s = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

void throw_if(const PlanError& error) {
  if (error && error.index) throw py::index_error(error.text);
  if (error) throw py::value_error(error.text);
}

std::unique_ptr<TreePlan> make_tree_plan(const Int64s& parents, const Int64s& segment_lens,
                                         const py::array_t<int32_t, 0>& block_table,
                                         const Int64s& leaves, const std::optional<Int64s>& leaf_lens,
                                         int64_t page_size, int64_t max_new_tokens) {
  const bool lens_fit = !leaf_lens || leaf_lens->size() == leaves.size();
  if (segment_lens.size() != parents.size() || !lens_fit || block_table.ndim() != 2 ||
      block_table.shape(0) != parents.size() ||
      (block_table.shape(1) > 1 && block_table.strides(1) != 4) || block_table.strides(0) % 4 != 0)
    throw py::value_error("expected segment_lens [N], leaf_lens [Q], block_table [N, max_pages]");
  auto plan = std::make_unique<TreePlan>();
  throw_if(make_plan({parents.size(), leaves.size(), parents.data(), segment_lens.data(),
                      block_table.data(), block_table.strides(0) / 4, block_table.shape(1),
                      leaves.data(), leaf_lens ? leaf_lens->data() : nullptr, page_size,
                      max_new_tokens},
                     plan.get()));
  return plan;
}

void advance_tree_plan(TreePlan& plan, const std::optional<py::array_t<bool, 0>>& active) {
  if (active && (active->size() != py::ssize_t(plan.query_order.size()) ||
                 active->strides(0) != 1))
    throw py::value_error("expected active [Q], contiguous");
  throw_if(advance_plan(active ? active->data() : nullptr, &plan));
}

// A NumPy view of one of the plan's arrays; it keeps the plan alive.
template <std::vector<int32_t> TreePlan::*member>
py::array plan_array(const py::object& self) {
  auto& values = self.cast<TreePlan&>().*member;
  return py::array_t<int32_t>(values.size(), values.data(), self);
}

int64_t element_stride(const py::array& a, int dim) { return a.strides(dim) / a.itemsize(); }

void run_tree_attention_py(const py::array& q, const py::array& k, const py::array& v,
                           const TreePlan& plan, float scale, const py::array& out,
                           const py::array_t<float, 0>& lse,
                           const py::array_t<float, 0>& workspace, int threads, int dtype) {
  TreeAttentionArgs a{};
  a.q = q.data(), a.k = k.data(), a.v = v.data();
  a.out = const_cast<void*>(out.data()), a.lse = const_cast<float*>(lse.data());
  a.q_stride_query = element_stride(q, 0), a.q_stride_head = element_stride(q, 1);
  a.k_stride_page = element_stride(k, 0), a.k_stride_head = element_stride(k, 1);
  a.v_stride_page = element_stride(v, 0), a.v_stride_head = element_stride(v, 1);
  a.out_stride_query = element_stride(out, 0), a.out_stride_head = element_stride(out, 1);
  a.lse_stride_query = element_stride(lse, 0), a.lse_stride_head = element_stride(lse, 1);
  const int kv_heads = static_cast<int>(k.shape(1));
  a.dtype = static_cast<Dtype>(dtype), a.scale = scale;
  a.group = static_cast<int>(q.shape(1)) / kv_heads;
  a.page_size = static_cast<int>(k.shape(2)), a.head_dim = static_cast<int>(k.shape(3));
  a.num_segments = static_cast<int>(plan.segment_ids.size());
  a.query_order = plan.query_order.data(), a.query_lens = plan.query_lens.data();
  a.segment_lens = plan.segment_lens.data(), a.query_begin = plan.query_begin.data();
  a.own_end = plan.own_end.data(), a.query_end = plan.query_end.data();
  a.page_begin = plan.page_begin.data(), a.page_ids = plan.page_ids.data();
  const int64_t words = threads * thread_words(q.shape(0), a.group, a.head_dim);
  if (q.shape(0) != py::ssize_t(plan.query_order.size()) || workspace.size() < words ||
      plan.num_pages_needed > k.shape(0))
    throw py::value_error("expected q, caches and workspace as planned");
  if (q.shape(0) == 0) return;
  float* scratch = const_cast<float*>(workspace.data());
  py::gil_scoped_release release;
  run_tree_attention(kTreeAttention[g_isa], a, plan, kv_heads, threads, scratch);
}

AppendKv append_side(const py::array& from, const py::array& cache) {
  return {static_cast<const char*>(from.data()), from.strides(0), from.strides(1),
          static_cast<char*>(const_cast<void*>(cache.data())), cache.strides(0), cache.strides(1)};
}

void append_kv_py(const py::array& k, const py::array& v, const py::array& k_cache,
                  const py::array& v_cache, const py::array_t<int64_t, 0>& slots, int threads) {
  const int64_t page_size = k_cache.shape(2), num_slots = k_cache.shape(0) * page_size;
  const int64_t bad = find_bad_slot(slots.data(), slots.size(), num_slots);
  if (bad >= 0)
    throw py::index_error("expected slot_mapping[" + std::to_string(bad) + "] in -1.." +
                          std::to_string(num_slots - 1) + ", got " +
                          std::to_string(slots.data()[bad]));
  const AppendKv k_side = append_side(k, k_cache), v_side = append_side(v, v_cache);
  py::gil_scoped_release release;
  append_kv(k_side, v_side, slots.data(), slots.size(), k.shape(1), page_size,
            k.shape(2) * k.itemsize(), threads);
}

void bind_attention(py::module_& m) {
  py::class_<TreePlan>(m, "TreePlan", "What a tree attention call reads; see TreeAttentionPlan.")
      .def("advance", &advance_tree_plan, py::arg("active").noconvert() = py::none())
      .def_readonly("num_pages_needed", &TreePlan::num_pages_needed)
#define MF_ARRAY(name) .def_property_readonly(#name, &plan_array<&TreePlan::name>)
          MF_ARRAY(query_order) MF_ARRAY(query_segment) MF_ARRAY(query_lens) MF_ARRAY(path_lens)
              MF_ARRAY(segment_ids) MF_ARRAY(segment_parents) MF_ARRAY(segment_lens)
                  MF_ARRAY(query_begin) MF_ARRAY(own_end) MF_ARRAY(query_end) MF_ARRAY(page_begin)
                      MF_ARRAY(page_ids);
#undef MF_ARRAY
  m.def("make_tree_plan", &make_tree_plan, py::arg("parents"), py::arg("segment_lens"),
        py::arg("block_table").noconvert(), py::arg("leaves"), py::arg("leaf_lens"),
        py::arg("page_size"), py::arg("max_new_tokens"));
  m.def("tree_attention_words", &thread_words, py::arg("queries"), py::arg("group"),
        py::arg("head_dim"), "float32 words of scratch a thread needs.");
  m.def("tree_attention", &run_tree_attention_py, py::arg("q").noconvert(),
        py::arg("k_cache").noconvert(), py::arg("v_cache").noconvert(), py::arg("plan"),
        py::arg("scale"), py::arg("out").noconvert(), py::arg("lse").noconvert(),
        py::arg("workspace").noconvert(), py::arg("threads"), py::arg("dtype"));
  m.def("append_kv", &append_kv_py, py::arg("k").noconvert(), py::arg("v").noconvert(),
        py::arg("k_cache").noconvert(), py::arg("v_cache").noconvert(),
        py::arg("slot_mapping").noconvert(), py::arg("threads"));
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using MaybeArray = std::optional<Array<T>>;

template <class T>
T* maybe_data(MaybeArray<T>& array) {
  return array ? array->mutable_data() : nullptr;
}

// Logits as NumPy holds them: float32, float16, or bfloat16 as uint16; rows of contiguous entries.
RowsView rows_view(const py::array& logits) {
  const py::ssize_t size = logits.itemsize();
  const char kind = logits.dtype().kind();
  const Dtype dtype = size == 4 ? Dtype::f32 : kind == 'u' ? Dtype::bf16 : Dtype::f16;
  if (logits.ndim() != 2 || !(size == 4 ? kind == 'f' : size == 2 && (kind == 'u' || kind == 'f')))
    throw std::invalid_argument("expected logits as a 2-D array of float32, float16 or uint16");
  if (logits.size() > 0 && logits.shape(1) > 1 && logits.strides(1) != size)
    throw std::invalid_argument("expected logits whose last dimension is contiguous");
  return {logits.data(), dtype, logits.shape(0), logits.shape(1), logits.strides(0) / size};
}

// Below this many logits a thread more costs more than it saves.
constexpr int64_t kLogitsPerThread = 16384;

void run_confidence(const ConfidenceArgs& args, int32_t capacity, int threads) {
  using Step = void (*)(const ConfidenceArgs&, const Workspace&, int, int);
#define MF_ENTRY(isa) {&isa::confidence_scan, &isa::confidence_finish_split},
  static constexpr Step kSteps[kNumIsas][2] = {MF_FOR_EACH_ISA(MF_ENTRY)};
#undef MF_ENTRY
  const RowsView& logits = args.logits;
  if (logits.rows == 0) return;
  const int64_t most = 1 + logits.rows * logits.cols / kLogitsPerThread;
  const int team = threads < most ? threads : static_cast<int>(most);
  const std::unique_ptr<uint64_t[]> memory(
      new uint64_t[workspace_bytes(logits.rows, logits.cols, capacity, team) / 8 + 1]);
  const Workspace space = carve_workspace(memory.get(), logits.rows, logits.cols, capacity, team);
  const Step* steps = kSteps[g_isa];
  parallel(team, [&](int thread, int size) { steps[0](args, space, thread, size); });
  if (*space.team == 1) return;
  parallel(team, [&](int thread, int size) { steps[1](args, space, thread, size); });
}

void topk_confidence(const py::array& logits, const py::array& token_ids, float temperature,
                     bool include_token, Array<float>& confidence, Array<float>& token_logprobs,
                     Array<float>& lse, Array<float>& topk_logprobs, Array<int32_t>& topk_ids,
                     Array<int32_t>& status, int threads) {
  ConfidenceArgs args{};
  args.logits = rows_view(logits);
  args.top_k = static_cast<int32_t>(topk_ids.shape(1));
  args.temperature = temperature;
  args.include_token = include_token;
  args.token_ids = token_ids.data();
  args.wide_ids = token_ids.itemsize() == 8;
  args.out = {confidence.mutable_data(),    token_logprobs.mutable_data(), lse.mutable_data(),
              topk_logprobs.mutable_data(), topk_ids.mutable_data(),       status.mutable_data()};
  py::gil_scoped_release release;
  run_confidence(args, args.top_k, threads);
}

void sample_confidence(const py::array& logits, const Array<float>& temperature,
                       const Array<float>& top_p, const Array<float>& min_p,
                       const Array<int32_t>& sample_top_k, const Array<int64_t>& seeds,
                       const Array<int64_t>& positions, bool tempered, bool include_token,
                       MaybeArray<int64_t> path_sums, MaybeArray<int32_t> path_counts,
                       MaybeArray<bool> active, Array<int32_t>& token_ids,
                       Array<float>& confidence, Array<float>& token_logprobs, Array<float>& lse,
                       Array<float>& topk_logprobs, Array<int32_t>& topk_ids,
                       Array<int32_t>& status, Array<float>& entropy, int threads) {
  SampleOptions sample{};
  sample.temperature = temperature.data();
  sample.top_p = top_p.data();
  sample.min_p = min_p.data();
  sample.top_k = sample_top_k.data();
  sample.seeds = seeds.data();
  sample.positions = positions.data();
  sample.path_sums = maybe_data(path_sums);
  sample.path_counts = maybe_data(path_counts);
  sample.active = active ? reinterpret_cast<const uint8_t*>(active->data()) : nullptr;
  sample.token_ids = token_ids.mutable_data();
  sample.entropy = entropy.mutable_data();
  sample.tempered = tempered;
  ConfidenceArgs args{};
  args.logits = rows_view(logits);
  args.top_k = static_cast<int32_t>(topk_ids.shape(1));
  args.temperature = 1.0f;
  args.include_token = include_token;
  args.sample = &sample;
  args.out = {confidence.mutable_data(),    token_logprobs.mutable_data(), lse.mutable_data(),
              topk_logprobs.mutable_data(), topk_ids.mutable_data(),       status.mutable_data()};
  py::gil_scoped_release release;
  int32_t capacity = args.top_k;
  for (int64_t b = 0; b < args.logits.rows; ++b)
    capacity = std::max(capacity, draw_candidates(sample, b, args.logits.cols));
  run_confidence(args, capacity, threads);
}

}  // namespace
}  // namespace marco_fast

PYBIND11_MODULE(_C, m) {
  using namespace marco_fast;
  m.def("supported_isas", &supported_isas, "Instruction sets this CPU can run, slowest first.");
  m.def("isa", [] { return std::string(isas()[g_isa].name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("name"), "Use another instruction set (for tests).");
  bind_attention(m);
  m.def("philox_uniform", [](int64_t seed, int64_t position) {
    return philox_uniform(seed, position, Purpose::token);
  }, py::arg("seed"), py::arg("position"), "The draw of a token, in [0, 1).");
  m.def("topk_confidence", &topk_confidence, py::arg("logits").noconvert(),
        py::arg("token_ids").noconvert(), py::arg("temperature"), py::arg("include_token"),
        py::arg("confidence").noconvert(), py::arg("token_logprobs").noconvert(),
        py::arg("lse").noconvert(), py::arg("topk_logprobs").noconvert(),
        py::arg("topk_ids").noconvert(), py::arg("status").noconvert(), py::arg("threads"));
  m.def("sample_confidence", &sample_confidence, py::arg("logits").noconvert(),
        py::arg("temperature").noconvert(), py::arg("top_p").noconvert(),
        py::arg("min_p").noconvert(), py::arg("sample_top_k").noconvert(),
        py::arg("seeds").noconvert(), py::arg("positions").noconvert(), py::arg("tempered"),
        py::arg("include_token"), py::arg("path_sums").noconvert().none(true),
        py::arg("path_counts").noconvert().none(true), py::arg("active").noconvert().none(true),
        py::arg("token_ids").noconvert(), py::arg("confidence").noconvert(),
        py::arg("token_logprobs").noconvert(), py::arg("lse").noconvert(),
        py::arg("topk_logprobs").noconvert(), py::arg("topk_ids").noconvert(),
        py::arg("status").noconvert(), py::arg("entropy").noconvert(), py::arg("threads"));
}
