// One call of lm_head_confidence: which thread computes what, window after window of the vocabulary.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "confidence/lm_head_confidence.h"
#include "base/parallel.h"

namespace marco_fast {

struct LMHeadKernels {
  void (*load_row)(const LMHeadArgs&, int64_t row, const HeadRows&);
  void (*logits)(const LMHeadArgs&, const HeadRows&, int64_t row_begin, int64_t row_end, int64_t begin,
                 int64_t end, float* logits, int64_t stride);
  void (*scan)(const LMHeadArgs&, int64_t row, int64_t begin, int64_t end, const float* x, HeadState*);
  bool (*finish)(const LMHeadArgs&, int64_t row, const HeadRows&, HeadState*);
  void (*record)(const LMHeadArgs&, int64_t row, HeadState*, const HeadRecords&);
};

class LMHeadRun {
 public:
  LMHeadRun(const LMHeadArgs& args, const LMHeadKernels& kernels, int threads)
      : args_(args), kernels_(kernels), rows_(args.scores.logits.rows),
        entries_(args.scores.logits.cols), threads_(threads) {
    const int64_t chunks = num_chunks(entries_), capacity = head_capacity(args.scores);
    hidden_.reset(new float[rows_ * head_row_words(args.size) + 16]);
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(hidden_.get()) + 63) & ~uintptr_t{63};
    held_ = {reinterpret_cast<float*>(begin), head_row_words(args.size)};
    records_.reset(new ChunkRecord[rows_ * chunks]);
    groups_.reset(new float[rows_ * chunks * kGroupsOfChunk]);
    keys_.reset(new uint64_t[rows_ * capacity]);
    for (int64_t row = 0; row < rows_; ++row)
      states_.push_back({records_.get() + row * chunks, groups_.get() + row * chunks * kGroupsOfChunk,
                         keys_.get() + row * capacity, 0});
  }

  // Reads the vocabulary.
  void scan() {
    const int64_t chunks = num_chunks(entries_);
    // As many chunks at a time as fit the last-level cache, and keep every thread busy.
    const int64_t window =
        std::min(chunks, std::max<int64_t>(1, kWindowLogits / (rows_ * int64_t{kChunk})));
    const std::unique_ptr<float[]> logits(new float[rows_ * window * kChunk]);
    share(rows_, rows_ * args_.size, [&](int64_t row) { kernels_.load_row(args_, row, held_); });
    for (int64_t chunk = 0; chunk < chunks; chunk += window) {
      const int64_t last = std::min(chunk + window, chunks);
      multiply(rows_, chunk * kChunk, std::min(last * kChunk, entries_), logits.get(),
               window * kChunk);
      share(rows_, rows_ * (last - chunk) * kChunk, [&](int64_t row) {
        kernels_.scan(args_, row, chunk, last, logits.get() + row * window * kChunk, &states_[row]);
      });
    }
  }

  // Rows whose draw needs all of their logits; those are not finished.
  std::vector<int64_t> finish() {
    std::vector<char> done(rows_);
    share(rows_, rows_ * args_.size * kDrawGroup, [&](int64_t row) {
      done[row] = kernels_.finish(args_, row, held_, &states_[row]);
    });
    std::vector<int64_t> left;
    for (int64_t row = 0; row < rows_; ++row)
      if (!done[row]) left.push_back(row);
    return left;
  }

  void record(const HeadRecords& out) {
    share(rows_, rows_ * kWorkOfRecord, [&](int64_t row) {
      kernels_.record(args_, row, &states_[row], out);
    });
  }

  // All logits [some rows, V].
  void all_logits(const std::vector<int64_t>& rows, float* logits) {
    for (size_t i = 0; i < rows.size(); ++i)  // rows ascend: each moves down or stays
      std::copy_n(held_.words + rows[i] * held_.stride, held_.stride, held_.words + i * held_.stride);
    multiply(static_cast<int64_t>(rows.size()), 0, entries_, logits, entries_);
  }

 private:
  static constexpr int64_t kWindowLogits = 1 << 20;  // 4 MiB
  static constexpr int64_t kPiece = 128;             // entries that a thread takes at a time, at least
  static constexpr int64_t kWorkOfRecord = 2000;     // a sort of the candidates
  static constexpr double kMinWork = 50e3;           // products or logits worth another thread

  // f(i) for i in [0, count), `work` in all
  template <class F>
  void share(int64_t count, double work, F&& f) {
    const double parts = std::min({work / kMinWork, double(count), 4.0 * threads_});
    parallel(threads_, std::max(1, static_cast<int>(parts)), [&](int part, int all) {
      for (int64_t i = count * part / all; i < count * (part + 1) / all; ++i) f(i);
    });
  }

  // Entries [begin, end) of the first `rows` rows.
  void multiply(int64_t rows, int64_t begin, int64_t end, float* logits, int64_t stride) {
    const int64_t pieces = (end - begin + kPiece - 1) / kPiece;
    share(pieces, double(end - begin) * args_.size * rows, [&](int64_t piece) {
      const int64_t from = begin + piece * kPiece, to = std::min(from + kPiece, end);
      kernels_.logits(args_, held_, 0, rows, from, to, logits + from - begin, stride);
    });
  }

  const LMHeadArgs& args_;
  const LMHeadKernels& kernels_;
  const int64_t rows_, entries_;
  const int threads_;
  std::unique_ptr<float[]> hidden_, groups_;
  std::unique_ptr<ChunkRecord[]> records_;
  std::unique_ptr<uint64_t[]> keys_;
  std::vector<HeadState> states_;
  HeadRows held_;
};

}  // namespace marco_fast
