// topk_confidence, sample_confidence and the LM head of marco_fast._C.
//
// Options and results cross as the addresses of a NamedTuple's fields, in their order.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "base/parallel.h"
#include "base/philox.h"
#include "bind/bind.h"
#include "confidence/lm_head_pass.h"
#include "confidence/topk_confidence.h"

namespace py = pybind11;

namespace marco_fast {
namespace {

using Step = void (*)(const ConfidenceArgs&, const Workspace&, int, int);
constexpr Step kSteps[kNumIsas][2] = {
#define MF_ENTRY(isa) {&isa::confidence_scan, &isa::confidence_finish_split},
    MF_FOR_EACH_ISA(MF_ENTRY)
#undef MF_ENTRY
};

constexpr LMHeadKernels kLMHead[] = {
#define MF_KERNELS(isa)                                                                    \
  {&isa::lm_head_load_row, &isa::lm_head_logits, &isa::lm_head_scan, &isa::lm_head_finish, \
   &isa::lm_head_summarize},
    MF_FOR_EACH_ISA(MF_KERNELS)
#undef MF_KERNELS
};

// With fewer logits per thread, starting another thread costs more than it saves.
constexpr int64_t kLogitsPerThread = 16384;

void run_confidence(const ConfidenceArgs& args, int32_t capacity, int threads) {
  const int64_t rows = args.logits.rows, vocab_size = args.logits.vocab_size;
  if (rows == 0) return;
  const int64_t most = 1 + rows * vocab_size / kLogitsPerThread;
  const int team = threads < most ? threads : static_cast<int>(most);
  const std::unique_ptr<uint64_t[]> memory(
      new uint64_t[workspace_bytes(rows, vocab_size, capacity, team) / 8 + 1]);
  const Workspace space = carve_workspace(memory.get(), rows, vocab_size, capacity, team);
  const Step* steps = kSteps[g_isa];
  parallel(team, [&](int thread, int size) { steps[0](args, space, thread, size); });
  if (*space.team == 1) return;
  parallel(team, [&](int thread, int size) { steps[1](args, space, thread, size); });
}

// The fields of TopKConfidence.
using Scores = std::array<Address, 6>;

ScoreOutputs score_outputs(const Scores& fields) {
  return {at<float>(fields[0]), at<float>(fields[1]),   at<float>(fields[2]),
          at<float>(fields[3]), at<int32_t>(fields[4]), at<int32_t>(fields[5])};
}

// The fields of SampledTokens.
using Sampled = std::array<Address, 8>;

ScoreOutputs score_outputs(const Sampled& fields) {
  Scores scores;
  std::copy_n(fields.begin() + 1, scores.size(), scores.begin());
  return score_outputs(scores);
}

// The fields of Sampling.
using Options = std::array<Address, 9>;

SampleOptions sample_options(const Options& fields, bool tempered, const Sampled& out) {
  SampleOptions sample{};
  sample.temperature = at<float>(fields[0]);
  sample.top_p = at<float>(fields[1]);
  sample.min_p = at<float>(fields[2]);
  sample.sample_top_k = at<int32_t>(fields[3]);
  sample.seeds = at<int64_t>(fields[4]);
  sample.positions = at<int64_t>(fields[5]);
  sample.path_sums = at<int64_t>(fields[6]);
  sample.path_counts = at<int32_t>(fields[7]);
  sample.active = at<uint8_t>(fields[8]);
  sample.token_ids = at<int32_t>(out.front());
  sample.entropy = at<float>(out.back());
  sample.tempered = tempered;
  return sample;
}

ConfidenceArgs confidence_args(const Tensor<2>& logits, int dtype, int32_t top_k,
                               bool include_token, const ScoreOutputs& out) {
  ConfidenceArgs args{};
  args.logits = {at<void>(logits.address), static_cast<Dtype>(dtype), logits.size[0],
                 logits.size[1], logits.stride[0]};
  args.top_k = top_k;
  args.temperature = 1.0f;
  args.include_token = include_token;
  args.out = out;
  return args;
}

void topk_confidence(const Tensor<2>& logits, int dtype, int32_t top_k, bool include_token,
                     float temperature, Address token_ids, bool wide_ids, const Scores& out,
                     int threads) {
  ConfidenceArgs args = confidence_args(logits, dtype, top_k, include_token, score_outputs(out));
  args.token_ids = at<void>(token_ids);
  args.wide_ids = wide_ids;
  args.temperature = temperature;
  py::gil_scoped_release release;
  run_confidence(args, top_k, threads);
}

int32_t sample_capacity(const ConfidenceArgs& args) {
  int32_t capacity = args.top_k;
  for (int64_t b = 0; b < args.logits.rows; ++b)
    capacity = std::max(capacity, draw_candidates(*args.sample, b, args.logits.vocab_size));
  return capacity;
}

void sample_confidence(const Tensor<2>& logits, int dtype, int32_t top_k, bool include_token,
                       bool tempered, const Options& options, const Sampled& out, int threads) {
  const SampleOptions sample = sample_options(options, tempered, out);
  ConfidenceArgs args = confidence_args(logits, dtype, top_k, include_token, score_outputs(out));
  args.sample = &sample;
  py::gil_scoped_release release;
  run_confidence(args, sample_capacity(args), threads);
}

// Draws and scores row b, given all its logits.
void sample_row(const ConfidenceArgs& all, int64_t b, const float* logits) {
  ConfidenceArgs args = all;
  SampleOptions sample = *all.sample;
  const auto move = [b](auto*& each, int64_t stride = 1) {
    if (each) each += b * stride;
  };
  move(sample.temperature), move(sample.top_p), move(sample.min_p), move(sample.sample_top_k);
  move(sample.seeds), move(sample.positions), move(sample.path_sums), move(sample.path_counts);
  move(sample.active), move(sample.token_ids), move(sample.entropy);
  move(args.out.confidence), move(args.out.token_logprobs), move(args.out.lse);
  move(args.out.topk_logprobs, args.top_k), move(args.out.topk_ids, args.top_k);
  move(args.out.status);
  args.sample = &sample;
  args.logits = {logits, Dtype::f32, 1, all.logits.vocab_size, all.logits.vocab_size};
  run_confidence(args, sample_capacity(args), 1);
}

// The product alone: hidden [B, H], weight [V, H], quantised if its address is 0, and bias [V] (0:
// none). `round_logits`: the dtype that logits are rounded to; float32: they are not.
LMHeadArgs lm_head_args(const Tensor<2>& hidden, const Tensor<2>& weight,
                        const QuantizedPanels* quantized, Address bias, int dtype,
                        int round_logits) {
  LMHeadArgs args{};
  args.quantized = quantized;
  args.hidden = at<void>(hidden.address), args.hidden_stride = hidden.stride[0];
  args.weight = at<void>(weight.address), args.weight_stride = weight.stride[0];
  args.bias = at<float>(bias), args.hidden_size = hidden.size[1];
  args.dtype = static_cast<Dtype>(dtype), args.round_logits = static_cast<Dtype>(round_logits);
  const int64_t rows = hidden.size[0], vocab_size = weight.size[0];
  args.scores.logits = {nullptr, Dtype::f32, rows, vocab_size, vocab_size};
  args.scores.temperature = 1.0f;
  return args;
}

void lm_head_records(const Tensor<2>& hidden, const Tensor<2>& weight,
                     const QuantizedPanels* quantized, Address bias, int dtype, int round_logits,
                     bool tempered, const Options& options, int32_t candidates,
                     const std::array<Address, 6>& out, int threads) {
  const SampleOptions sample = sample_options(options, tempered, {});
  LMHeadArgs args = lm_head_args(hidden, weight, quantized, bias, dtype, round_logits);
  args.scores.top_k = static_cast<int32_t>(std::min<int64_t>(candidates, weight.size[0]));
  args.scores.sample = &sample;
  if (hidden.size[0] == 0) return;
  const ShardSummary summary{at<float>(out[0]),   at<double>(out[1]), at<int32_t>(out[2]),
                             at<int32_t>(out[3]), at<float>(out[4]),  at<int32_t>(out[5]),
                             candidates};
  py::gil_scoped_release release;
  LMHeadPass pass(args, kLMHead[g_isa], threads);
  pass.scan();
  pass.summarize(summary);
}

void lm_head_confidence(const Tensor<2>& hidden, const Tensor<2>& weight,
                        const QuantizedPanels* quantized, Address bias, int dtype, int round_logits,
                        int32_t top_k, bool include_token, bool tempered, const Options& options,
                        const Sampled& out, int threads) {
  const SampleOptions sample = sample_options(options, tempered, out);
  LMHeadArgs args = lm_head_args(hidden, weight, quantized, bias, dtype, round_logits);
  args.scores.top_k = top_k, args.scores.include_token = include_token;
  args.scores.sample = &sample, args.scores.out = score_outputs(out);
  if (hidden.size[0] == 0) return;
  py::gil_scoped_release release;
  LMHeadPass pass(args, kLMHead[g_isa], threads);
  pass.scan();
  const std::vector<int64_t> left = pass.finish();
  if (left.empty()) return;
  const int64_t vocab_size = weight.size[0];
  const std::unique_ptr<float[]> logits(new float[left.size() * vocab_size]);
  pass.all_logits(left, logits.get());
  parallel(threads, static_cast<int>(left.size()),
           [&](int i, int) { sample_row(args.scores, left[i], logits.get() + i * vocab_size); });
}

}  // namespace

void bind_confidence(py::module_& m) {
  m.def(
      "philox_uniform",
      [](int64_t seed, int64_t position) { return philox_uniform(seed, position, Purpose::token); },
      py::arg("seed"), py::arg("position"), "The draw of a token, in [0, 1).");
  m.def("topk_confidence", &topk_confidence);
  m.def("sample_confidence", &sample_confidence);
  m.def("lm_head_confidence", &lm_head_confidence);
  m.def("lm_head_records", &lm_head_records);
}

}  // namespace marco_fast
