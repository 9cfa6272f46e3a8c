// topk_confidence, sample_confidence and lm_head_confidence of marco_fast._C: addresses in, results filled.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "confidence/lm_head_pass.h"
#include "base/parallel.h"
#include "base/philox.h"
#include "confidence/topk_confidence.h"

namespace py = pybind11;

namespace marco_fast {

extern int g_isa;  // bind/module.cpp

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

using Step = void (*)(const ConfidenceArgs&, const Workspace&, int, int);
constexpr Step kSteps[kNumIsas][2] = {
#define MF_ENTRY(isa) {&isa::confidence_scan, &isa::confidence_finish_split},
    MF_FOR_EACH_ISA(MF_ENTRY)
#undef MF_ENTRY
};

constexpr LMHeadKernels kLMHead[] = {
#define MF_KERNELS(isa) \
  {&isa::lm_head_load_row, &isa::lm_head_logits, &isa::lm_head_scan, &isa::lm_head_finish, \
   &isa::lm_head_record},
    MF_FOR_EACH_ISA(MF_KERNELS)
#undef MF_KERNELS
};

// Below this many logits a thread more costs more than it saves.
constexpr int64_t kLogitsPerThread = 16384;

void run_confidence(const ConfidenceArgs& args, int32_t capacity, int threads) {
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

using Outputs = std::array<Address, 6>;  // the fields of TopKConfidence

ConfidenceArgs confidence_args(Address logits, int dtype, int64_t rows, int64_t cols,
                               int64_t stride, int32_t top_k, bool include_token,
                               const Outputs& out) {
  ConfidenceArgs args{};
  args.logits = {at<void>(logits), static_cast<Dtype>(dtype), rows, cols, stride};
  args.top_k = top_k;
  args.temperature = 1.0f;
  args.include_token = include_token;
  args.out = {at<float>(out[0]), at<float>(out[1]),   at<float>(out[2]),
              at<float>(out[3]), at<int32_t>(out[4]), at<int32_t>(out[5])};
  return args;
}

void topk_confidence(Address logits, int dtype, int64_t rows, int64_t cols, int64_t stride,
                     int32_t top_k, bool include_token, const Outputs& out, Address token_ids,
                     bool wide_ids, float temperature, int threads) {
  ConfidenceArgs args =
      confidence_args(logits, dtype, rows, cols, stride, top_k, include_token, out);
  args.token_ids = at<void>(token_ids);
  args.wide_ids = wide_ids;
  args.temperature = temperature;
  py::gil_scoped_release release;
  run_confidence(args, top_k, threads);
}

// temperature, top_p, min_p, sample_top_k, seeds, positions, path_sums, path_counts, active.
using Options = std::array<Address, 9>;

SampleOptions sample_options(const Options& options, Address token_ids, Address entropy,
                             bool tempered) {
  SampleOptions sample{};
  sample.temperature = at<float>(options[0]);
  sample.top_p = at<float>(options[1]);
  sample.min_p = at<float>(options[2]);
  sample.top_k = at<int32_t>(options[3]);
  sample.seeds = at<int64_t>(options[4]);
  sample.positions = at<int64_t>(options[5]);
  sample.path_sums = at<int64_t>(options[6]);
  sample.path_counts = at<int32_t>(options[7]);
  sample.active = at<uint8_t>(options[8]);
  sample.token_ids = at<int32_t>(token_ids);
  sample.entropy = at<float>(entropy);
  sample.tempered = tempered;
  return sample;
}

int32_t sample_capacity(const ConfidenceArgs& args) {
  int32_t capacity = args.top_k;
  for (int64_t b = 0; b < args.logits.rows; ++b)
    capacity = std::max(capacity, draw_candidates(*args.sample, b, args.logits.cols));
  return capacity;
}

void sample_confidence(Address logits, int dtype, int64_t rows, int64_t cols, int64_t stride,
                       int32_t top_k, bool include_token, const Outputs& out,
                       const Options& options, Address token_ids, Address entropy, bool tempered,
                       int threads) {
  const SampleOptions sample = sample_options(options, token_ids, entropy, tempered);
  ConfidenceArgs args =
      confidence_args(logits, dtype, rows, cols, stride, top_k, include_token, out);
  args.sample = &sample;
  py::gil_scoped_release release;
  run_confidence(args, sample_capacity(args), threads);
}

// Draws and scores one row whose logits are all at hand.
void sample_row(const ConfidenceArgs& all, int64_t b, const float* logits) {
  ConfidenceArgs args = all;
  SampleOptions sample = *all.sample;
  const auto move = [b](auto*& each, int64_t stride = 1) {
    if (each) each += b * stride;
  };
  move(sample.temperature), move(sample.top_p), move(sample.min_p), move(sample.top_k);
  move(sample.seeds), move(sample.positions), move(sample.path_sums), move(sample.path_counts);
  move(sample.active), move(sample.token_ids), move(sample.entropy);
  move(args.out.confidence), move(args.out.token_logprobs), move(args.out.lse);
  move(args.out.topk_logprobs, args.top_k), move(args.out.topk_ids, args.top_k);
  move(args.out.status);
  args.sample = &sample;
  args.logits = {logits, Dtype::f32, 1, all.logits.cols, all.logits.cols};
  run_confidence(args, sample_capacity(args), 1);
}

// Rows of hidden and of weight are `strides` elements apart; `rounded`: the dtype that logits are
// rounded to, float32 for none.
LMHeadArgs lm_head_args(Address hidden, Address weight, Address bias, int dtype, int rounded,
                        const std::array<int64_t, 3>& sizes, const std::array<int64_t, 2>& strides,
                        int32_t top_k, bool include_token, const Outputs& out,
                        const SampleOptions& sample) {
  LMHeadArgs args{};
  args.hidden = at<void>(hidden), args.hidden_stride = strides[0];
  args.weight = at<void>(weight), args.weight_stride = strides[1];
  args.bias = at<float>(bias), args.size = sizes[1];
  args.dtype = static_cast<Dtype>(dtype), args.rounded = static_cast<Dtype>(rounded);
  args.scores = confidence_args(0, int(Dtype::f32), sizes[0], sizes[2], sizes[2], top_k,
                                include_token, out);
  args.scores.sample = &sample;
  return args;
}

void lm_head_records(Address hidden, Address weight, Address bias, int dtype, int rounded,
                     const std::array<int64_t, 3>& sizes, const std::array<int64_t, 2>& strides,
                     const Options& options, bool tempered, int32_t candidates,
                     const std::array<Address, 6>& out, int threads) {
  const SampleOptions sample = sample_options(options, 0, 0, tempered);
  const LMHeadArgs args = lm_head_args(hidden, weight, bias, dtype, rounded, sizes, strides,
                                       std::min<int64_t>(candidates, sizes[2]), false, {}, sample);
  if (sizes[0] == 0) return;
  const HeadRecords records{at<float>(out[0]),   at<double>(out[1]), at<int32_t>(out[2]),
                            at<int32_t>(out[3]), at<float>(out[4]),  at<int32_t>(out[5]), candidates};
  py::gil_scoped_release release;
  LMHeadRun run(args, kLMHead[g_isa], threads);
  run.scan();
  run.record(records);
}

void lm_head_confidence(Address hidden, Address weight, Address bias, int dtype, int rounded,
                        const std::array<int64_t, 3>& sizes, const std::array<int64_t, 2>& strides,
                        int32_t top_k, bool include_token, const Outputs& out,
                        const Options& options, Address token_ids, Address entropy, bool tempered,
                        int threads) {
  const int64_t entries = sizes[2];
  const SampleOptions sample = sample_options(options, token_ids, entropy, tempered);
  const LMHeadArgs args = lm_head_args(hidden, weight, bias, dtype, rounded, sizes, strides, top_k,
                                       include_token, out, sample);
  if (sizes[0] == 0) return;
  py::gil_scoped_release release;
  LMHeadRun run(args, kLMHead[g_isa], threads);
  run.scan();
  const std::vector<int64_t> left = run.finish();
  if (left.empty()) return;
  const std::unique_ptr<float[]> logits(new float[left.size() * entries]);
  run.all_logits(left, logits.get());
  parallel(threads, static_cast<int>(left.size()), [&](int i, int) {
    sample_row(args.scores, left[i], logits.get() + i * entries);
  });
}

}  // namespace

void bind_confidence(py::module_& m) {
  m.def("philox_uniform", [](int64_t seed, int64_t position) {
    return philox_uniform(seed, position, Purpose::token);
  }, py::arg("seed"), py::arg("position"), "The draw of a token, in [0, 1).");
  m.def("topk_confidence", &topk_confidence);
  m.def("sample_confidence", &sample_confidence);
  m.def("lm_head_confidence", &lm_head_confidence);
  m.def("lm_head_records", &lm_head_records);
}

}  // namespace marco_fast
