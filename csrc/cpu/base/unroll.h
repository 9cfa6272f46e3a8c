// Counts that the compiler knows, so that small arrays of registers stay in registers.
//
// Included once per instruction set, like simd.h.
#pragma once

namespace marco_fast {
namespace MF_NS {

template <int N>
struct Int {
  static constexpr int value = N;
};

// Calls f(Int<count>{}) for a count of 1 to N.
template <int N, class F>
inline void with_count(int count, F&& f) {
  if constexpr (N == 1) {
    f(Int<1>{});
  } else {
    if (count == N) return f(Int<N>{});
    with_count<N - 1>(count, f);
  }
}

// Calls f(begin, Int<size>{}) for blocks of at most N that cover [0, count), all about as large.
template <int N, class F>
inline void in_even_blocks(int count, F&& f) {
  const int blocks = (count + N - 1) / N;
  for (int i = 0; i < blocks; ++i) {
    const int begin = count * i / blocks;
    with_count<N>(count * (i + 1) / blocks - begin, [&](auto size) { f(begin, size); });
  }
}

}  // namespace MF_NS
}  // namespace marco_fast
