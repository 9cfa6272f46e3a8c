// Tree attention, its plans and append_kv of marco_fast._C.
//
// Only the planner takes NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/append_kv.h"
#include "attention/packed_plan.h"
#include "attention/plan.h"
#include "attention/schedule.h"
#include "attention/work_items.h"
#include "bind/bind.h"

namespace py = pybind11;

namespace marco_fast {
namespace {

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
                                         const Int64s& leaves,
                                         const std::optional<Int64s>& leaf_lens, int64_t page_size,
                                         int64_t max_new_tokens) {
  const bool lens_fit = !leaf_lens || leaf_lens->size() == leaves.size();
  if (segment_lens.size() != parents.size() || !lens_fit || block_table.ndim() != 2 ||
      block_table.shape(0) != parents.size() ||
      (block_table.shape(1) > 1 && block_table.strides(1) != 4) || block_table.strides(0) % 4 != 0)
    throw py::value_error("expected segment_lens [N], leaf_lens [Q], block_table [N, max_pages]");
  auto plan = std::make_unique<TreePlan>();
  throw_if(
      make_plan({parents.size(), leaves.size(), parents.data(), segment_lens.data(),
                 block_table.data(), block_table.strides(0) / 4, block_table.shape(1),
                 leaves.data(), leaf_lens ? leaf_lens->data() : nullptr, page_size, max_new_tokens},
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
  if (active && (active->size() != py::ssize_t(plan.query_order.size()) || active->strides(0) != 1))
    throw py::value_error("expected active [Q], contiguous");
  throw_if(advance_plan(active ? active->data() : nullptr, &plan));
}

// The packed plan, in a new array. Its sections have room for `room`, by default for what they
// hold.
py::array_t<int32_t> pack_plan(const TreePlan& plan, const Heads& heads, int64_t chunk_tokens,
                               int64_t token_group, int64_t tile_query_heads, int64_t enough_items,
                               const std::optional<Counts>& room) {
  const WorkItems items = make_work_items(plan, {heads[0] / heads[1], heads[1], chunk_tokens,
                                                 token_group, tile_query_heads, enough_items});
  const Counts counts = counts_of(plan, items);
  for (int i = 0; room && i < kCounts; ++i)
    if (counts[i] > (*room)[i])
      throw py::value_error("expected at most " + std::to_string((*room)[i]) + " " +
                            kCountNames[i] + ", the plan's room, got " + std::to_string(counts[i]));
  py::array_t<int32_t> packed(packed_words(room.value_or(counts)));
  pack(plan, items, heads, chunk_tokens, room.value_or(counts), packed.mutable_data());
  return packed;
}

// A NumPy view of one of the plan's arrays; it keeps the plan alive.
template <std::vector<int32_t> TreePlan::* member>
py::array plan_array(const py::object& self) {
  auto& values = self.cast<TreePlan&>().*member;
  return py::array_t<int32_t>(values.size(), values.data(), self);
}

// q, out and lse may have further rows behind the plan's queries; they are not touched.
void run_tree_attention_py(const Tensor<3>& q, const Tensor<4>& k_cache, const Tensor<4>& v_cache,
                           const TreePlan& plan, float scale, const Tensor<3>& out,
                           const Tensor<2>& lse, const Tensor<1>& workspace, int64_t queries,
                           int dtype, int threads) {
  const int64_t num_kv_heads = k_cache.size[1];
  TreeAttentionArgs a{};
  a.q = at<void>(q.address), a.q_stride_query = q.stride[0], a.q_stride_head = q.stride[1];
  a.k = at<void>(k_cache.address);
  a.k_stride_page = k_cache.stride[0], a.k_stride_head = k_cache.stride[1];
  a.v = at<void>(v_cache.address);
  a.v_stride_page = v_cache.stride[0], a.v_stride_head = v_cache.stride[1];
  a.out = at<void>(out.address);
  a.out_stride_query = out.stride[0], a.out_stride_head = out.stride[1];
  a.lse = at<float>(lse.address);
  a.lse_stride_query = lse.stride[0], a.lse_stride_head = lse.stride[1];
  a.dtype = static_cast<Dtype>(dtype), a.scale = scale;
  a.group = static_cast<int>(q.size[1] / num_kv_heads);
  a.page_size = static_cast<int>(k_cache.size[2]), a.head_dim = static_cast<int>(k_cache.size[3]);
  set_plan(plan, &a);
  // What may have changed since the plan was made: its pages, by advance(), and the threads.
  const int64_t words = threads * thread_words(queries, a.group, a.head_dim);
  if (queries != int64_t(plan.query_order.size()) || workspace.size[0] < words ||
      plan.num_pages_needed > k_cache.size[0])
    throw py::value_error("expected q, caches and workspace as planned");
  if (queries == 0) return;
  py::gil_scoped_release release;
  run_tree_attention(kTreeAttention[g_isa], a, plan, static_cast<int>(num_kv_heads), threads,
                     at<float>(workspace.address));
}

// K or V, with strides in bytes: heads are copied as they are, whatever their type.
AppendKv append_side(const Tensor<3>& from, const Tensor<4>& cache, int64_t itemsize) {
  return {at<const char>(from.address), from.stride[0] * itemsize,  from.stride[1] * itemsize,
          at<char>(cache.address),      cache.stride[0] * itemsize, cache.stride[1] * itemsize};
}

void append_kv_py(const Tensor<3>& k, const Tensor<3>& v, const Tensor<4>& k_cache,
                  const Tensor<4>& v_cache, Address slot_mapping, int64_t itemsize, int threads) {
  const int64_t* slots = at<const int64_t>(slot_mapping);
  const int64_t tokens = k.size[0], page_size = k_cache.size[2];
  check_range("slot_mapping", slots, tokens, -1, k_cache.size[0] * page_size);
  const AppendKv k_side = append_side(k, k_cache, itemsize);
  const AppendKv v_side = append_side(v, v_cache, itemsize);
  py::gil_scoped_release release;
  append_kv(k_side, v_side, slots, tokens, k.size[1], page_size, k.size[2] * itemsize, threads);
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<TreePlan>(m, "TreePlan", "What a tree attention call reads; see TreeAttentionPlan.")
      .def("advance", &advance_tree_plan, py::arg("active").noconvert() = py::none())
      .def_readonly("num_pages_needed", &TreePlan::num_pages_needed)
      .def_property_readonly("query_order", &plan_array<&TreePlan::query_order>)
      .def_property_readonly("query_segment", &plan_array<&TreePlan::query_segment>)
      .def_property_readonly("query_lens", &plan_array<&TreePlan::query_lens>)
      .def_property_readonly("path_lens", &plan_array<&TreePlan::path_lens>)
      .def_property_readonly("segment_ids", &plan_array<&TreePlan::segment_ids>)
      .def_property_readonly("segment_parents", &plan_array<&TreePlan::segment_parents>)
      .def_property_readonly("segment_lens", &plan_array<&TreePlan::segment_lens>)
      .def_property_readonly("query_begin", &plan_array<&TreePlan::query_begin>)
      .def_property_readonly("own_end", &plan_array<&TreePlan::own_end>)
      .def_property_readonly("query_end", &plan_array<&TreePlan::query_end>)
      .def_property_readonly("page_begin", &plan_array<&TreePlan::page_begin>)
      .def_property_readonly("page_ids", &plan_array<&TreePlan::page_ids>);
  m.def("make_tree_plan", &make_tree_plan, py::arg("parents"), py::arg("segment_lens"),
        py::arg("block_table").noconvert(), py::arg("leaves"), py::arg("leaf_lens"),
        py::arg("page_size"), py::arg("max_new_tokens"));
  m.def("tree_plan_of_arrays", &tree_plan_of_arrays, py::arg("arrays"), py::arg("page_size"));
  m.def("pack_plan", &pack_plan, py::arg("plan"), py::arg("heads"), py::arg("chunk_tokens"),
        py::arg("token_group"), py::arg("tile_query_heads"), py::arg("enough_items"),
        py::arg("room") = py::none());
  m.def("tree_attention_words", &thread_words, py::arg("queries"), py::arg("group"),
        py::arg("head_dim"), "float32 words of scratch per thread.");
  m.def("tree_attention", &run_tree_attention_py);
  m.def("append_kv", &append_kv_py);
}

}  // namespace marco_fast
