#include "attention/tree_attention.h"

#include "attention/attention_block.h"

namespace marco_fast {
namespace MF_NS {
namespace {

constexpr int kMaxChunk = chunk_tokens(16);
struct Scratch {
  float* keys;    // [tiles][words][kLanes]: K packed, tokens in lanes; or [tokens][head_dim], widened
  float* values;  // V of a chunk, where copied: [pairs][head_dim] words or [tokens][head_dim], widened
  float* scores;  // [kRowBlock][scores_stride]
  float* sums;    // [kRowBlock][head_dim]: a block's weighted sums of V
  float *m, *s, *acc;  // [rows] states; acc [rows][head_dim]
  float* q;       // [rows][head_dim] float32, or pairs of bfloat16
  int64_t scores_stride;
};

Scratch carve(float* words, int64_t rows, int head_dim) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(words);
  float* next = reinterpret_cast<float*>((address + 63) & ~static_cast<uintptr_t>(63));
  const int64_t chunk = chunk_tokens(head_dim), padded = (rows + 15) / 16 * 16;
  const auto take = [&next](int64_t count) {
    float* taken = next;
    next += count;
    return taken;
  };
  Scratch s;
  s.scores_stride = chunk + 16;  // not a multiple of 4 KiB, so that rows differ in cache sets
  s.keys = take(chunk * head_dim);
  s.values = take(chunk * head_dim);
  s.scores = take(kRowBlock * s.scores_stride);
  s.sums = take(static_cast<int64_t>(kRowBlock) * head_dim);
  s.m = take(padded);
  s.s = take(padded);
  s.acc = take(padded * head_dim);
  s.q = take(padded * head_dim);
  return s;
}

// The tokens of one chunk and those after it: where K and V of each begin.
template <class T>
struct Chunk {
  const T* k[kMaxChunk + kDots + kAhead];
  const T* v[kMaxChunk + kDots + kAhead];
};

// `tokens` of them; after the segment's last token its address stands again.
template <class T>
void locate(const TreeAttentionArgs& a, int head, int segment, int64_t begin, int tokens, Chunk<T>* c) {
  const int32_t* pages = a.page_ids + a.page_begin[segment];
  const T* k = static_cast<const T*>(a.k) + head * a.k_stride_head;
  const T* v = static_cast<const T*>(a.v) + head * a.v_stride_head;
  const int64_t left = a.segment_lens[segment] - begin;
  int64_t page = begin / a.page_size, offset = begin % a.page_size;
  for (int t = 0; t < tokens; ++t) {
    if (t >= left) {
      c->k[t] = c->k[t - 1];
      c->v[t] = c->v[t - 1];
      continue;
    }
    c->k[t] = k + pages[page] * a.k_stride_page + offset * a.head_dim;
    c->v[t] = v + pages[page] * a.v_stride_page + offset * a.head_dim;
    if (++offset == a.page_size) {
      offset = 0;
      ++page;
    }
  }
}

// Queries of the unit that read a chunk, and how many of its tokens each sees.
struct Readers {
  const TreeAttentionArgs& args;
  int segment;
  int64_t chunk_begin;
  int chunk_tokens;

  int visible(int query) const {
    if (query >= args.own_end[segment]) return chunk_tokens;
    const int64_t seen = args.query_lens[query] - chunk_begin;
    return seen < chunk_tokens ? static_cast<int>(seen < 0 ? 0 : seen) : chunk_tokens;
  }
};

template <class T>
struct Walk {
  static constexpr bool kPairs = kPairDot && std::is_same<T, bf16>::value;
  const TreeAttentionArgs& args;
  const TreeAttentionUnit& unit;
  Scratch s;
  const bool packs = packs_keys(args.head_dim);
  Upcoming upcoming{};
  int asked = 0;  // tokens of the next chunk that `upcoming` holds
  // A negative scale is |scale| and a negated q, so that the largest score has the largest weight.
  const float scale = std::fabs(args.scale), sign = args.scale < 0 ? -1.0f : 1.0f;

  int rows() const { return (unit.query_end - unit.query_begin) * args.group; }
  int query_of(int row) const { return unit.query_begin + row / args.group; }

  void begin() {
    for (int row = 0; row < rows(); ++row) {
      s.m[row] = -kInf;
      s.s[row] = 0.0f;
      float* acc = s.acc + static_cast<int64_t>(row) * args.head_dim;
      for (int i = 0; i < args.head_dim; i += kLanes) store(acc + i, set1(0.0f));
      const T* q = static_cast<const T*>(args.q) +
                   args.query_order[query_of(row)] * args.q_stride_query +
                   (unit.kv_head * args.group + row % args.group) * args.q_stride_head;
      float* to = s.q + static_cast<int64_t>(row) * args.head_dim;
      if (kPairs) {
        for (int i = 0; i < args.head_dim; i += kLanes)
          store(reinterpret_cast<T*>(to) + i, mul(load(q + i), set1(sign)));
      } else {
        for (int i = 0; i < args.head_dim; i += kLanes) store(to + i, mul(load(q + i), set1(sign)));
      }
    }
  }

  // Steps of the weighted sum that a row with `visible` of the chunk's tokens shares with others.
  static int whole_steps(int visible, int tokens) {
    if (!kPairs) return visible;
    return visible == tokens ? (tokens + 1) / 2 : visible / 2;
  }

  State state(int row) const {
    return {s.m + row, s.s + row, s.acc + static_cast<int64_t>(row) * args.head_dim};
  }

  // One chunk's share in `rows` rows, at most kRowBlock.
  template <bool kAsk, class K, class V>
  void block(const Readers& readers, int first, int rows, int tokens, const K* const* keys,
             const V* const* values) {
    int visible[kRowBlock], fewest = tokens, most = 0;
    for (int r = 0; r < rows; ++r) {
      visible[r] = readers.visible(query_of(first + r));
      fewest = visible[r] < fewest ? visible[r] : fewest;
      most = visible[r] > most ? visible[r] : most;
    }
    const float* q = s.q + static_cast<int64_t>(first) * args.head_dim;
    if (packs)
      score_packed<kPairs>(rows, q, args.head_dim, s.keys, most, s.scores, s.scores_stride);
    else
      score_rows<kAsk>(rows, q, args.head_dim, keys, most, s.scores, s.scores_stride);
    for (int r = 0; r < rows; ++r) {
      upcoming.ask();
      exponentiate<kPairs>(s.scores + r * s.scores_stride, visible[r], scale, state(first + r),
                           args.head_dim);
    }
    // The chunk's weighted sums by themselves, then to the state: one chain of sums over a long path would
    // err more than PyTorch's.
    std::memset(s.sums, 0, sizeof(float) * rows * args.head_dim);
    const int joint = whole_steps(fewest, tokens);
    weigh_block<kPairs, kAsk>(rows, s.scores, s.scores_stride, values, 0, joint, s.sums,
                              args.head_dim);
    for (int r = 0; r < rows; ++r) {
      const float* p = s.scores + r * s.scores_stride;
      float *sums = s.sums + r * args.head_dim, *acc = state(first + r).acc;
      const int whole = whole_steps(visible[r], tokens);
      upcoming.ask();
      weigh_block<kPairs, false>(1, p, 0, values, joint, whole, sums, args.head_dim);
      if (kPairs && 2 * whole < visible[r])
        weigh_half_pair(p + whole, reinterpret_cast<const float*>(values[whole]), sums,
                        args.head_dim);
      for (int i = 0; i < args.head_dim; i += kLanes)
        store(acc + i, add(load(acc + i), load(sums + i)));
    }
  }

  // `next`: the segment whose tokens follow this chunk, or -1.
  void chunk(const Readers& readers, int begin, int end, int next) {
    int most = 0;
    while (begin < end && readers.visible(begin) == 0) ++begin;
    for (int query = begin; query < end; ++query) {
      const int visible = readers.visible(query);
      most = visible > most ? visible : most;
    }
    if (most == 0) return;
    Chunk<T> c;
    const int located = packs ? most : most + kDots + kAhead;
    locate(args, unit.kv_head, readers.segment, readers.chunk_begin, located, &c);
    const int first = (begin - unit.query_begin) * args.group, count = (end - begin) * args.group;
    const int here = asked, calls = 2 * count + (packs ? (most + kLanes - 1) / kLanes : 0);
    announce(next, calls);
    if (packs) pack_keys<kPairs>(c.k, c.v, most, here, args.head_dim, s.keys, upcoming);
    if constexpr (kPairs) {
      pair_values(c.v, most, args.head_dim, s.values);
    } else {
      if (count <= kRowBlock) return blocks(readers, first, count, most, c.k, c.v);
      widen_rows(c.v, most, args.head_dim, s.values);
      if (!packs) widen_rows(c.k, most, args.head_dim, s.keys);
    }
    const float *keys[kMaxChunk + kDots + kAhead], *values[kMaxChunk + kDots + kAhead];
    for (int t = 0; t < located; ++t) {
      const int64_t offset = static_cast<int64_t>(t < most ? t : most - 1) * args.head_dim;
      keys[t] = s.keys + offset;
      values[t] = s.values + offset;
    }
    blocks(readers, first, count, most, keys, values);
  }

  // Rows [first, first + count) in blocks of about the same size.
  template <class K, class V>
  void blocks(const Readers& readers, int first, int count, int tokens, const K* const* keys,
              const V* const* values) {
    const int64_t number = (count + kRowBlock - 1) / kRowBlock;
    for (int64_t i = 0; i < number; ++i) {
      const int from = static_cast<int>(count * i / number);
      const int rows = static_cast<int>(count * (i + 1) / number) - from;
      if (number == 1 && !packs)
        block<true>(readers, first + from, rows, tokens, keys, values);
      else
        block<false>(readers, first + from, rows, tokens, keys, values);
    }
  }

  // The first tokens of a segment become `upcoming`, as many as so many calls can ask for.
  void announce(int segment, int calls) {
    upcoming.clear();
    asked = 0;
    if (segment < 0) return;
    const int64_t row = args.head_dim * sizeof(T), most = calls * Upcoming::kMostLines * 64 / (2 * row);
    const int64_t tokens = args.segment_lens[segment] < most ? args.segment_lens[segment] : most;
    const T* k = static_cast<const T*>(args.k) + unit.kv_head * args.k_stride_head;
    const T* v = static_cast<const T*>(args.v) + unit.kv_head * args.v_stride_head;
    for (const int32_t* page = args.page_ids + args.page_begin[segment]; asked < tokens && !upcoming.full();
         ++page) {
      const int64_t left = tokens - asked, count = left < args.page_size ? left : args.page_size;
      upcoming.add(k + *page * args.k_stride_page, count * row);
      upcoming.add(v + *page * args.v_stride_page, count * row);
      asked += static_cast<int>(count);
    }
    upcoming.spread(calls);
  }

  // Whether a query of the unit reads the segment.
  bool reads(int index) const {
    return args.query_begin[index] < unit.query_end && args.query_end[index] > unit.query_begin;
  }

  // `next`: the segment after it, or -1.
  void segment(int index, int next) {
    int begin = args.query_begin[index], end = args.query_end[index];
    begin = begin > unit.query_begin ? begin : unit.query_begin;
    end = end < unit.query_end ? end : unit.query_end;
    const int step = chunk_tokens(args.head_dim), tokens = args.segment_lens[index];
    for (int64_t from = 0; from < tokens; from += step) {
      const bool last = tokens - from <= step;
      const int count = last ? static_cast<int>(tokens - from) : step;
      chunk(Readers{args, index, from, count}, begin, end, last ? next : -1);
    }
  }

  // out = acc / s, lse = m + ln s; a row that saw no token: 0 and -inf
  void finish() {
    for (int row = 0; row < rows(); ++row) {
      const int64_t query = args.query_order[query_of(row)];
      const int head = unit.kv_head * args.group + row % args.group;
      T* out = static_cast<T*>(args.out) + query * args.out_stride_query + head * args.out_stride_head;
      const float* acc = s.acc + static_cast<int64_t>(row) * args.head_dim;
      const bool empty = s.m[row] == -kInf;
      const Vec inverse = set1(1.0f / s.s[row]);
      for (int i = 0; i < args.head_dim; i += kLanes)
        store(out + i, empty ? set1(0.0f) : mul(load(acc + i), inverse));
      args.lse[query * args.lse_stride_query + head * args.lse_stride_head] =
          empty ? -kInf : s.m[row] * scale + std::log(s.s[row]);
    }
  }
};

template <class T>
void run(const TreeAttentionArgs& args, const TreeAttentionUnit& unit, float* scratch) {
  const int64_t rows = static_cast<int64_t>(unit.query_end - unit.query_begin) * args.group;
  Walk<T> walk{args, unit, carve(scratch, rows, args.head_dim)};
  walk.begin();
  const auto after = [&](int index) {
    while (++index < args.num_segments && !walk.reads(index)) {
    }
    return index < args.num_segments ? index : -1;
  };
  for (int index = after(-1), next; index >= 0; index = next) {
    next = after(index);
    walk.segment(index, next);
  }
  walk.finish();
}

}  // namespace

void tree_attention(const TreeAttentionArgs& args, const TreeAttentionUnit& unit, float* scratch) {
  switch (args.dtype) {
    case Dtype::f32: return run<float>(args, unit, scratch);
    case Dtype::bf16: return run<bf16>(args, unit, scratch);
    case Dtype::f16: return run<f16>(args, unit, scratch);
  }
}

}  // namespace MF_NS
}  // namespace marco_fast
