// The Python module marco_fast._C: checks buffers, releases the GIL, dispatches by instruction set.
//
// Only bind/ knows Python. Tensors arrive as addresses, with the sizes
// and strides that are not fixed: at a few rows a call is short enough that views of them would take
// longer than the work. marco_fast/ops checks every tensor before. Only the planner takes NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/append_kv.h"
#include "base/dtypes.h"
#include "base/isa.h"
#include "base/parallel.h"
#include "attention/work_items.h"
#include "attention/plan.h"
#include "attention/packed_plan.h"
#include "attention/schedule.h"

namespace py = pybind11;

namespace marco_fast {

int g_isa = best_isa();  // set_isa() changes it, for tests and for comparing instruction sets

void bind_confidence(pybind11::module_& m);  // bind/confidence.cpp
void bind_decoder(pybind11::module_& m);     // bind/decoder.cpp

namespace {

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
using Int32s = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

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

std::unique_ptr<TreePlan> tree_plan_of_arrays(const std::array<Int32s, kPlanArrays.size()>& arrays,
                                              int64_t page_size) {
  auto plan = std::make_unique<TreePlan>();
  for (size_t i = 0; i < arrays.size(); ++i)
    ((*plan).*kPlanArrays[i]).assign(arrays[i].data(), arrays[i].data() + arrays[i].size());
  throw_if(check_plan(page_size, plan.get()));
  return plan;
}

void advance_tree_plan(TreePlan& plan, const std::optional<py::array_t<bool, 0>>& active) {
  if (active && (active->size() != py::ssize_t(plan.query_order.size()) ||
                 active->strides(0) != 1))
    throw py::value_error("expected active [Q], contiguous");
  throw_if(advance_plan(active ? active->data() : nullptr, &plan));
}

// The plan's sections for a device in one new array, each with room for `room` words, or as many as
// it has.
py::array_t<int32_t> make_tree_items(const TreePlan& plan, int64_t group, int64_t kv_heads,
                                     int64_t chunk_tokens, int64_t group_tokens, int64_t tile_rows,
                                     int64_t enough_items, const std::optional<SectionSizes>& room) {
  const TreeItems items = build_items(
      plan, {group, kv_heads, chunk_tokens, group_tokens, tile_rows, enough_items});
  const Sections sections = sections_of(plan, items);
  SectionSizes sizes;
  for (int i = 0; i < kSections; ++i) {
    const auto needed = static_cast<int64_t>(sections[i]->size());
    sizes[i] = room ? (*room)[i] : needed;
    if (sizes[i] < needed)
      throw py::value_error("expected a plan of at most " + std::to_string(sizes[i]) +
                            " words of " + kSectionNames[i] + ", its room, got " +
                            std::to_string(needed));
  }
  py::array_t<int32_t> packed(packed_words(sizes));
  pack(sections, sizes, items.tile_rows, packed.mutable_data());
  return packed;
}

// A NumPy view of one of the plan's arrays; it keeps the plan alive.
template <std::vector<int32_t> TreePlan::*member>
py::array plan_array(const py::object& self) {
  auto& values = self.cast<TreePlan&>().*member;
  return py::array_t<int32_t>(values.size(), values.data(), self);
}

// The address of a tensor's first element; 0: no tensor.
using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void run_tree_attention_py(Address q, Address k_cache, Address v_cache, const TreePlan& plan,
                           float scale, Address out, Address lse, Address workspace,
                           int64_t workspace_numel, const std::array<int64_t, 10>& strides,
                           int64_t queries, int heads, int64_t pages, int kv_heads, int page_size,
                           int head_dim, int dtype, int threads) {
  TreeAttentionArgs a{};
  a.q = at<void>(q), a.k = at<void>(k_cache), a.v = at<void>(v_cache);
  a.out = at<void>(out), a.lse = at<float>(lse);
  a.q_stride_query = strides[0], a.q_stride_head = strides[1];
  a.k_stride_page = strides[2], a.k_stride_head = strides[3];
  a.v_stride_page = strides[4], a.v_stride_head = strides[5];
  a.out_stride_query = strides[6], a.out_stride_head = strides[7];
  a.lse_stride_query = strides[8], a.lse_stride_head = strides[9];
  a.dtype = static_cast<Dtype>(dtype), a.scale = scale;
  a.group = heads / kv_heads, a.page_size = page_size, a.head_dim = head_dim;
  set_plan(plan, &a);
  // What may have changed since the plan was made: its pages, by advance(), and the threads.
  const int64_t words = threads * thread_words(queries, a.group, head_dim);
  if (queries != int64_t(plan.query_order.size()) || workspace_numel < words ||
      plan.num_pages_needed > pages)
    throw py::value_error("expected q, caches and workspace as planned");
  if (queries == 0) return;
  py::gil_scoped_release release;
  run_tree_attention(kTreeAttention[g_isa], a, plan, kv_heads, threads, at<float>(workspace));
}

// Strides in bytes: of a token and a head of k and v, of a page and a head of the caches.
void append_kv_py(Address k, Address v, Address k_cache, Address v_cache, Address slot_mapping,
                  const std::array<int64_t, 8>& strides, int64_t tokens, int64_t heads,
                  int64_t pages, int64_t page_size, int64_t row_bytes, int threads) {
  const int64_t* slots = at<const int64_t>(slot_mapping);
  const int64_t num_slots = pages * page_size;
  const int64_t bad = find_bad_slot(slots, tokens, num_slots);
  if (bad >= 0)
    throw py::index_error("expected slot_mapping[" + std::to_string(bad) + "] in -1.." +
                          std::to_string(num_slots - 1) + ", got " + std::to_string(slots[bad]));
  const AppendKv k_side{at<const char>(k), strides[0], strides[1],
                        at<char>(k_cache), strides[4], strides[5]};
  const AppendKv v_side{at<const char>(v), strides[2], strides[3],
                        at<char>(v_cache), strides[6], strides[7]};
  py::gil_scoped_release release;
  append_kv(k_side, v_side, slots, tokens, heads, page_size, row_bytes, threads);
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
  m.def("tree_plan_of_arrays", &tree_plan_of_arrays, py::arg("arrays"), py::arg("page_size"));
  m.def("make_tree_items", &make_tree_items, py::arg("plan"), py::arg("group"), py::arg("kv_heads"),
        py::arg("chunk_tokens"), py::arg("group_tokens"), py::arg("tile_rows"),
        py::arg("enough_items"), py::arg("room") = py::none());
  m.def("tree_attention_words", &thread_words, py::arg("queries"), py::arg("group"),
        py::arg("head_dim"), "float32 words of scratch a thread needs.");
  m.def("tree_attention", &run_tree_attention_py);
  m.def("append_kv", &append_kv_py);
}

}  // namespace
}  // namespace marco_fast

PYBIND11_MODULE(_C, m) {
  using namespace marco_fast;
  m.def("supported_isas", &supported_isas, "Instruction sets this CPU can run, slowest first.");
  m.def("isa", [] { return std::string(isas()[g_isa].name); }, "The instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("name"), "Use another instruction set (for tests).");
  bind_attention(m);
  bind_confidence(m);
  bind_decoder(m);
}
