// Requests to bring memory into the caches before it is read.
//
// Included once per instruction set, like simd.h.
#pragma once

#include <cstdint>

namespace marco_fast {
namespace MF_NS {

inline __attribute__((always_inline)) void prefetch(const void* p) { __builtin_prefetch(p); }

// Several tiles that pass over the same memory request together what comes after it. This is the
// share of one of them: it requests one piece per `every` steps, beginning with step `first`.
struct PrefetchShare {
  int64_t ahead;  // from what is in use to what is requested at step 0, in elements
  int first, every;
};

// Memory that will be read next, requested a few lines at a time between other work: requests for
// all of it at once would hold up whatever is loaded meanwhile.
class Upcoming {
 public:
  static constexpr int kMostLines = 8;  // per call of request()

  void clear() { count_ = current_ = 0; }

  bool full() const { return count_ == kMostSpans; }

  void add(const void* at, int64_t bytes) {
    const int lines = static_cast<int>((bytes + 63) / 64);
    spans_[count_++] = {static_cast<const char*>(at), lines};
    lines_ += lines;
  }

  // Divides the lines among `calls` calls of request().
  void spread(int calls) {
    share_ = (lines_ + calls - 1) / calls;
    lines_ = 0;
  }

  void request() {
    for (int i = 0; i < share_ && current_ < count_; ++i) {
      Span& span = spans_[current_];
      prefetch(span.at);
      span.at += 64;
      if (--span.lines == 0) ++current_;
    }
  }

 private:
  static constexpr int kMostSpans = 16;
  struct Span {
    const char* at;
    int lines;
  } spans_[kMostSpans];
  int count_ = 0, current_ = 0, lines_ = 0, share_ = 0;
};

}  // namespace MF_NS
}  // namespace marco_fast
