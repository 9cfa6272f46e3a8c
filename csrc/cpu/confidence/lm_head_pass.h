// One call of lm_head_confidence: which thread computes what, window by window of the vocabulary.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "base/parallel.h"
#include "confidence/lm_head_confidence.h"

namespace marco_fast {

struct LMHeadKernels {
  void (*load_row)(const LMHeadArgs&, int64_t row, const HeadRows&);
  void (*logits)(const LMHeadArgs&, const HeadRows&, int64_t row_begin, int64_t row_end,
                 int64_t begin, int64_t end, float* logits, int64_t stride);
  void (*scan)(const LMHeadArgs&, int64_t row, int64_t begin, int64_t end, const float* x,
               HeadState*);
  bool (*finish)(const LMHeadArgs&, int64_t row, const HeadRows&, HeadState*);
  void (*summarize)(const LMHeadArgs&, int64_t row, HeadState*, const ShardSummary&);
};

class LMHeadPass {
 public:
  LMHeadPass(const LMHeadArgs& args, const LMHeadKernels& kernels, int threads)
      : args_(args),
        kernels_(kernels),
        rows_(args.scores.logits.rows),
        vocab_size_(args.scores.logits.vocab_size),
        threads_(threads),
        int8_(args.quantized && args.quantized->int8_rows ? rows_ : 0, args.hidden_size) {
    const int64_t blocks = num_vocab_blocks(vocab_size_), capacity = head_capacity(args.scores);
    hidden_.reset(new float[rows_ * head_row_words(args.hidden_size) + 16]);
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(hidden_.get()) + 63) & ~uintptr_t{63};
    held_ = {reinterpret_cast<float*>(begin), head_row_words(args.hidden_size),
             int8_.rows.rows > 0 ? &int8_.rows : nullptr};
    records_.reset(new BlockRecord[rows_ * blocks]);
    tile_masses_.reset(new float[rows_ * blocks * kTilesPerBlock]);
    keys_.reset(new uint64_t[rows_ * capacity]);
    for (int64_t row = 0; row < rows_; ++row)
      states_.push_back({records_.get() + row * blocks,
                         tile_masses_.get() + row * blocks * kTilesPerBlock,
                         keys_.get() + row * capacity, 0});
  }

  // Multiplies by all weights and keeps what a row needs of its logits.
  void scan() {
    const int64_t blocks = num_vocab_blocks(vocab_size_);
    // A window is as many blocks as fit the last-level cache for all rows.
    const int64_t window =
        std::min(blocks, std::max<int64_t>(1, kWindowLogits / (rows_ * int64_t{kVocabBlock})));
    const std::unique_ptr<float[]> logits(new float[rows_ * window * kVocabBlock]);
    share(rows_, rows_ * args_.hidden_size,
          [&](int64_t row) { kernels_.load_row(args_, row, held_); });
    for (int64_t block = 0; block < blocks; block += window) {
      const int64_t last = std::min(block + window, blocks);
      multiply(rows_, block * kVocabBlock, std::min(last * kVocabBlock, vocab_size_), logits.get(),
               window * kVocabBlock);
      share(rows_, rows_ * (last - block) * kVocabBlock, [&](int64_t row) {
        kernels_.scan(args_, row, block, last, logits.get() + row * window * kVocabBlock,
                      &states_[row]);
      });
    }
  }

  // Draws and scores. Returns the rows that are not finished: their draw needs all their logits.
  std::vector<int64_t> finish() {
    std::vector<char> done(rows_);
    share(rows_, rows_ * args_.hidden_size * kVocabTile,
          [&](int64_t row) { done[row] = kernels_.finish(args_, row, held_, &states_[row]); });
    std::vector<int64_t> left;
    for (int64_t row = 0; row < rows_; ++row)
      if (!done[row]) left.push_back(row);
    return left;
  }

  void summarize(const ShardSummary& out) {
    share(rows_, rows_ * kSummaryWork,
          [&](int64_t row) { kernels_.summarize(args_, row, &states_[row], out); });
  }

  // All logits [len(rows), V] of some rows. Afterwards no other row of hidden is held.
  void all_logits(const std::vector<int64_t>& rows, float* logits) {
    for (size_t i = 0; i < rows.size(); ++i) {  // rows ascend: each moves down or stays
      std::copy_n(held_.words + rows[i] * held_.stride, held_.stride,
                  held_.words + i * held_.stride);
      for (int64_t g = 0; held_.int8_rows && g < args_.hidden_size / kGroup; ++g)
        copy_row(*held_.int8_rows, g * rows_ + rows[i], g * rows_ + static_cast<int64_t>(i));
    }
    multiply(static_cast<int64_t>(rows.size()), 0, vocab_size_, logits, vocab_size_);
  }

 private:
  static constexpr int64_t kWindowLogits = 1 << 20;  // 4 MiB
  static constexpr int64_t kPiece = 128;             // tokens that a thread takes at a time
  static constexpr int64_t kSummaryWork = 2000;      // of a row: its candidates are sorted
  static constexpr double kMinWork = 50e3;  // products or logits that pay for another thread

  // Calls f(i) for each i in [0, count), which is `work` products or logits in all.
  template <class F>
  void share(int64_t count, double work, F&& f) {
    const double parts = std::min({work / kMinWork, double(count), 4.0 * threads_});
    parallel(threads_, std::max(1, static_cast<int>(parts)), [&](int part, int all) {
      for (int64_t i = count * part / all; i < count * (part + 1) / all; ++i) f(i);
    });
  }

  // Logits of tokens [begin, end) and of the first `rows` rows that are held.
  void multiply(int64_t rows, int64_t begin, int64_t end, float* logits, int64_t stride) {
    const int64_t pieces = (end - begin + kPiece - 1) / kPiece;
    share(pieces, double(end - begin) * args_.hidden_size * rows, [&](int64_t piece) {
      const int64_t from = begin + piece * kPiece, to = std::min(from + kPiece, end);
      kernels_.logits(args_, held_, 0, rows, from, to, logits + from - begin, stride);
    });
  }

  static void copy_row(const QuantizedRows& rows, int64_t from, int64_t to) {
    std::copy_n(rows.codes + from * kGroup, kGroup, rows.codes + to * kGroup);
    rows.scales[to] = rows.scales[from];
    std::copy_n(rows.sums + 2 * from, 2, rows.sums + 2 * to);
  }

  const LMHeadArgs& args_;
  const LMHeadKernels& kernels_;
  const int64_t rows_, vocab_size_;
  const int threads_;
  std::unique_ptr<float[]> hidden_, tile_masses_;
  std::unique_ptr<BlockRecord[]> records_;
  std::unique_ptr<uint64_t[]> keys_;
  std::vector<HeadState> states_;
  const Int8Memory int8_;
  HeadRows held_;
};

}  // namespace marco_fast
