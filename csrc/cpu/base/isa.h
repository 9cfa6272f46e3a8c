// Instruction sets: which exist, which this CPU has, which one runs.
//
// Every kernel source is compiled once per entry of MF_FOR_EACH_ISA, with -DMF_ISA=<number> and
// -DMF_NS=<name> (setup.py), and puts its entry points into namespace marco_fast::<name>. Such a
// file must not instantiate std containers or algorithms out of line: the linker keeps one copy of
// a weak symbol, which might be the copy for an instruction set that this CPU lacks.
#pragma once

#define MF_ISA_SCALAR 0
#define MF_ISA_AVX2 1
#define MF_ISA_AVX512 2
#define MF_ISA_AVX512_BF16 3

#if defined(__x86_64__)
#define MF_FOR_EACH_ISA(X) X(scalar) X(avx2) X(avx512) X(avx512_bf16)
#else
#define MF_FOR_EACH_ISA(X) X(scalar)
#endif

namespace marco_fast {

struct Isa {
  const char* name;
  bool supported;
};

inline constexpr int kNumIsas =
#if defined(__x86_64__)
    4;
#else
    1;
#endif

// The instruction sets in ascending order; `supported`: this CPU and its operating system run it.
inline const Isa* isas() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c");
  static const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const bool bf16 =
      avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  static const Isa all[kNumIsas] = {
      {"scalar", true}, {"avx2", avx2}, {"avx512", avx512}, {"avx512_bf16", bf16}};
#else
  static const Isa all[kNumIsas] = {{"scalar", true}};
#endif
  return all;
}

inline int best_isa() {
  int best = 0;
  for (int i = 0; i < kNumIsas; ++i)
    if (isas()[i].supported) best = i;
  return best;
}

}  // namespace marco_fast
