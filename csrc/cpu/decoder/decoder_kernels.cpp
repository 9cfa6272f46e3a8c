#include "decoder/decoder_kernels.h"

#include "base/simd_tile.h"

namespace marco_fast {
namespace MF_NS {
namespace {

constexpr int kLanes = Vec::kLanes;
constexpr int kVecs = kPanel / kLanes;  // registers of a row of a panel
constexpr int kHalf = kVecs / 2;
// Rows that share one load of the weights: with kVecs registers each, 24 accumulators of 32, 12 of 16.
constexpr int kRows = MF_ISA >= MF_ISA_AVX512 ? 12 : MF_ISA == MF_ISA_AVX2 ? 3 : 2;
constexpr int kGroupRows = 8 * kRows;  // rows that pass over a piece of a panel while it is in the cache
// Words of a piece of a panel, of 128 bytes each. Few rows at a time want it in L1, many in L2; where
// bfloat16 is widened, the rows' share of it must stay there too.
constexpr int64_t kPieceWords = MF_ISA == MF_ISA_AVX2 ? 128 : MF_ISA == MF_ISA_AVX512 ? 256 : 2048;
// Whether all tiles of a piece ask for the next piece, each for its share of it. Otherwise the first tile asks
// for words kAhead of its own.
constexpr bool kAskPiece = MF_ISA == MF_ISA_AVX2;
constexpr int64_t kAhead = 16;

// What a tile asks for from memory: from so many words (of kPanel lanes) ahead of the piece on, one word for
// every so many that it multiplies.
struct Ask {
  int64_t ahead, every;
};

template <int N>
struct Int {
  static constexpr int value = N;
};

template <int N, class F>
inline void with_rows_up_to(int rows, F&& f) {
  if constexpr (N == 1) {
    f(Int<1>{});
  } else {
    if (rows == N) return f(Int<N>{});
    with_rows_up_to<N - 1>(rows, f);
  }
}

// The two bfloat16 of each word as float32.
#if MF_ISA == MF_ISA_SCALAR
inline Vec low(Vec words) {
  uint32_t bits;
  std::memcpy(&bits, &words.v, 4);
  return {to_float(bf16{static_cast<uint16_t>(bits)})};
}
inline Vec high(Vec words) {
  uint32_t bits;
  std::memcpy(&bits, &words.v, 4);
  return {to_float(bf16{static_cast<uint16_t>(bits >> 16)})};
}
#elif MF_ISA == MF_ISA_AVX2
inline Vec low(Vec words) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(words.v), 16))};
}
inline Vec high(Vec words) {  // by shifts: a mask would take the register that multiply() lacks
  const __m256i bits = _mm256_srli_epi32(_mm256_castps_si256(words.v), 16);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))};
}
#else
inline Vec low(Vec words) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words.v), 16))};
}
inline Vec high(Vec words) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words.v), upper))};
}
#endif

// One word a row and input, or pair of inputs: a float32, or two bfloat16.
inline Vec broadcast(const float* word) {
#if MF_ISA == MF_ISA_SCALAR
  return {*word};
#elif MF_ISA == MF_ISA_AVX2
  return {_mm256_broadcast_ss(word)};
#else
  return {_mm512_set1_ps(*word)};
#endif
}

// acc[r][j] += x[r] * w(j)
template <int R, class W>
inline __attribute__((always_inline)) void multiply_add(const Vec (&x)[R], W&& w,
                                                        Vec (&acc)[R][kVecs]) {
#pragma GCC unroll 4
  for (int j = 0; j < kVecs; ++j) {
    const Vec each = w(j);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) acc[r][j] = fma(x[r], each, acc[r][j]);
  }
}

// sums [R, kPanel] += a [R rows, words] * panel [words, kPanel]. Where bfloat16 is not multiplied in pairs, a is
// float32, two of them a word. kAsk: whether the tile asks.
template <bool kPairs, bool kAsk, int R>
__attribute__((noinline)) void multiply(const float* a, int64_t stride, const float* panel,
                                        int64_t words, Ask ask, float* sums) {
  // A local array that is nowhere passed on: GCC keeps it in registers alone.
  Vec acc[R][kVecs];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) acc[r][j] = load(sums + r * kPanel + j * kLanes);
  const int64_t every = !kAsk ? words : kAskPiece ? ask.every : 1;
  const float* next = panel + ask.ahead * kPanel;
  for (int64_t begin = 0; begin < words; begin += every, next += kPanel) {
    if (kAsk) {
      prefetch(next);
      prefetch(next + 16);
    }
    const int64_t end = words - begin < every ? words : begin + every;
    for (int64_t k = begin; k < end; ++k, panel += kPanel) {
      const auto word = [panel](int j) { return load(panel + j * kLanes); };
      Vec x[R];
      if constexpr (kPairs && kPairDot) {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + k);
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j) {
          const Vec w = word(j);
#pragma GCC unroll 12
          for (int r = 0; r < R; ++r) acc[r][j] = dot_step_pair(x[r], w, acc[r][j]);
        }
      } else if constexpr (kPairs) {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + 2 * k);
        multiply_add(x, [&](int j) { return low(word(j)); }, acc);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + 2 * k + 1);
        multiply_add(x, [&](int j) { return high(word(j)); }, acc);
      } else {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) x[r] = broadcast(a + r * stride + k);
        multiply_add(x, word, acc);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) store(sums + r * kPanel + j * kLanes, acc[r][j]);
}

// bfloat16 to float32; size is even
inline void widen(const bf16* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load(from + i));
  for (; i < size; ++i) to[i] = to_float(from[i]);
}

// e^x for |x| <= 88
inline Vec exp_within(Vec x) {
  const Vec n = round(mul(x, set1(1.44269504f)));
  const Vec r = fma(n, set1(1.42860677e-6f), fma(n, set1(-0.693148613f), x));
  return scale2(exp_polynomial(r), n);
}

// g / (1 + e^-g), which float32 can tell from 0 above -88 and from g below 88; NaN stays NaN.
inline Vec silu(Vec g) {
  const Vec low = max(set1(-88.0f), g), minus = sub(set1(0.0f), low);
  return divide(low, add(set1(1.0f), exp_within(max(set1(-88.0f), minus))));
}

inline void store_some(float* to, const float* from, int64_t count, bool accumulate) {
  for (int64_t i = 0; i < count; ++i) to[i] = accumulate ? to[i] + from[i] : from[i];
}

template <class T>
inline void store_gated(const LinearArgs& args, int64_t row, int64_t panel, const Vec* acc) {
  T* to = static_cast<T*>(args.gated) + row * args.gated_stride + panel * (kPanel / 2);
  for (int j = 0; j < kHalf; ++j) store(to + j * kLanes, mul(silu(acc[j]), acc[kHalf + j]));
}

inline void finish_row(const LinearArgs& args, int64_t row, int64_t panel, const float* sums) {
  const int64_t column = panel * kPanel;
  Vec acc[kVecs];
  for (int j = 0; j < kVecs; ++j) {
    acc[j] = load(sums + j * kLanes);
    if (args.bias) acc[j] = add(acc[j], load(args.bias + column + j * kLanes));
  }
  if (args.gated) {
    if (args.dtype == Dtype::bf16) return store_gated<bf16>(args, row, panel, acc);
    return store_gated<float>(args, row, panel, acc);
  }
  float* to = args.result + row * args.out + column;
  if (args.out - column < kPanel) {
    float lanes[kPanel];
    for (int j = 0; j < kVecs; ++j) store(lanes + j * kLanes, acc[j]);
    return store_some(to, lanes, args.out - column, args.accumulate);
  }
  for (int j = 0; j < kVecs; ++j) {
    float* at = to + j * kLanes;
    store(at, args.accumulate ? add(load(at), acc[j]) : acc[j]);
  }
}

// Rows [row, row + R) over words [begin, end) of a panel; sums [R, kPanel] are begun, added to, and at the end
// of the panel put where they belong.
template <bool kPairs, bool kAsk, int R>
void tile(const LinearArgs& args, int64_t row, int64_t panel, int64_t words, int64_t begin,
          int64_t end, Ask ask, float* sums) {
  if (begin == 0) std::memset(sums, 0, sizeof(float) * R * kPanel);
  const float* at = static_cast<const float*>(args.panels) + (panel * words + begin) * kPanel;
  if constexpr (kPairs && !kPairDot) {
    float wide[R][2 * kPieceWords];
    for (int r = 0; r < R; ++r)
      widen(static_cast<const bf16*>(args.a) + (row + r) * args.a_stride + 2 * begin,
            2 * (end - begin), wide[r]);
    multiply<kPairs, kAsk, R>(wide[0], 2 * kPieceWords, at, end - begin, ask, sums);
  } else {
    const int64_t stride = kPairs ? args.a_stride / 2 : args.a_stride;
    multiply<kPairs, kAsk, R>(static_cast<const float*>(args.a) + row * stride + begin, stride, at,
                              end - begin, ask, sums);
  }
  if (end < words) return;
  for (int r = 0; r < R; ++r) finish_row(args, row + r, panel, sums + r * kPanel);
}

template <bool kPairs>
void panel_rows(const LinearArgs& args, int64_t panel, int64_t first, int count) {
  alignas(64) float sums[kGroupRows * kPanel];
  const int64_t words = kPairs ? args.in / 2 : args.in;
  const int tiles = (count + kRows - 1) / kRows;
  for (int64_t begin = 0; begin < words; begin += kPieceWords) {
    const int64_t end = words - begin < kPieceWords ? words : begin + kPieceWords;
    for (int t = 0; t < tiles; ++t) {
      const int from = count * t / tiles, to = count * (t + 1) / tiles;
      const int64_t ahead = kAskPiece ? end - begin + (end - begin) * t / tiles : kAhead;
      const Ask ask{ahead, tiles};
      with_rows_up_to<kRows>(to - from, [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        const auto run = kAskPiece || t == 0 ? tile<kPairs, true, R> : tile<kPairs, false, R>;
        run(args, first + from, panel, words, begin, end, ask, sums + from * kPanel);
      });
    }
  }
}

template <class T>
void norm_row(const NormArgs& args, const float* x, T* out) {
  Vec sum = set1(0.0f);
  for (int64_t i = 0; i < args.size; i += kLanes) sum = fma(load(x + i), load(x + i), sum);
  const Vec factor = set1(1.0f / std::sqrt(reduce_add(sum) / args.size + args.eps));
  for (int64_t i = 0; i < args.size; i += kLanes)
    store(out + i, mul(mul(load(x + i), factor), load(args.weight + i)));
}

template <class T>
void convert(const float* from, int size, T* to) {
  for (int i = 0; i < size; i += kLanes) store(to + i, load(from + i));
}

// One head: RMSNorm where there is a weight, then RoPE (arXiv 2104.09864), halves rotated together.
template <class T>
void rope_head(const RopeArgs& args, const float* x, const float* norm, int64_t position, T* out) {
  float normed[256], turned[256];
  const int size = args.head_dim, half = size / 2;
  if (norm) {
    norm_row(NormArgs{nullptr, norm, args.eps, size, Dtype::f32, nullptr, 0}, x, normed);
    x = normed;
  }
  const float* cos = args.cos + position * size;
  const float* sin = args.sin + position * size;
  for (int i = 0; i < half; ++i) turned[i] = x[i] * cos[i] - x[half + i] * sin[i];
  for (int i = half; i < size; ++i) turned[i] = x[i] * cos[i] + x[i - half] * sin[i];
  convert(turned, size, out);
}

template <class T>
void rope_row(const RopeArgs& args, int64_t row) {
  const int size = args.head_dim;
  const float* x = args.qkv + row * (args.heads + 2 * args.kv_heads) * size;
  T* q = static_cast<T*>(args.q) + row * args.heads * size;
  const int64_t position = args.positions[row], slot = args.slots[row];
  for (int h = 0; h < args.heads; ++h, x += size)
    rope_head(args, x, args.q_norm, position, q + h * size);
  if (slot < 0) return;
  const int64_t page = slot / args.page_size, offset = slot % args.page_size * size;
  T* k = static_cast<T*>(args.k_cache) + page * args.k_stride_page + offset;
  T* v = static_cast<T*>(args.v_cache) + page * args.v_stride_page + offset;
  for (int h = 0; h < args.kv_heads; ++h, x += size)
    rope_head(args, x, args.k_norm, position, k + h * args.k_stride_head);
  for (int h = 0; h < args.kv_heads; ++h, x += size) convert(x, size, v + h * args.v_stride_head);
}

}  // namespace

void linear(const LinearArgs& args, int64_t panel_begin, int64_t panel_end) {
  for (int64_t panel = panel_begin; panel < panel_end; ++panel)
    for (int64_t first = 0; first < args.rows; first += kGroupRows) {
      const int64_t left = args.rows - first;
      const int count = left < kGroupRows ? static_cast<int>(left) : kGroupRows;
      if (args.dtype == Dtype::bf16) {
        panel_rows<true>(args, panel, first, count);
      } else {
        panel_rows<false>(args, panel, first, count);
      }
    }
}

void norm_rows(const NormArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* x = args.x + row * args.size;
    if (args.dtype == Dtype::bf16) {
      norm_row(args, x, static_cast<bf16*>(args.out) + row * args.out_stride);
    } else {
      norm_row(args, x, static_cast<float*>(args.out) + row * args.out_stride);
    }
  }
}

void rope_rows(const RopeArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    if (args.dtype == Dtype::bf16) {
      rope_row<bf16>(args, row);
    } else {
      rope_row<float>(args, row);
    }
  }
}

void embed_row(const void* table, Dtype dtype, int64_t row, int64_t size, float* out) {
  for (int64_t i = 0; i < size; i += kLanes) {
    if (dtype == Dtype::bf16) {
      store(out + i, load(static_cast<const bf16*>(table) + row * size + i));
    } else {
      store(out + i, load(static_cast<const float*>(table) + row * size + i));
    }
  }
}

}  // namespace MF_NS
}  // namespace marco_fast
