// Tree attention on a CPU: a unit's walk over its segments; compiled once per instruction set.
#include "attention/tree_attention.h"

#include "attention/chunk.h"
#include "attention/pack.h"
#include "attention/scores.h"
#include "attention/weigh.h"

namespace marco_fast {
namespace MF_NS {
namespace {

struct Scratch {
  float* keys;         // K, packed: [tiles][words][kLanes]; or widened: [tokens][head_dim]
  float* values;       // V, in pairs of tokens: [pairs][head_dim]; or widened: [tokens][head_dim]
  float* scores;       // [kBlockQueryHeads][scores_stride]
  float* sums;         // [kBlockQueryHeads][head_dim]: weighted sums of a chunk's V
  float *m, *s, *acc;  // [query_heads] states; acc [query_heads][head_dim]
  float* q;            // [query_heads][head_dim] float32, or pairs of bfloat16
  int64_t scores_stride;
};

Scratch carve(float* words, int64_t query_heads, int head_dim) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(words);
  float* next = reinterpret_cast<float*>((address + 63) & ~static_cast<uintptr_t>(63));
  const int64_t chunk = cpu_chunk_tokens(head_dim), padded = (query_heads + 15) / 16 * 16;
  const auto take = [&next](int64_t count) {
    float* taken = next;
    next += count;
    return taken;
  };
  Scratch s;
  s.scores_stride = chunk + 16;  // not a multiple of 4 KiB: query_heads use different cache sets
  s.keys = take(chunk * head_dim);
  s.values = take(chunk * head_dim);
  s.scores = take(kBlockQueryHeads * s.scores_stride);
  s.sums = take(static_cast<int64_t>(kBlockQueryHeads) * head_dim);
  s.m = take(padded);
  s.s = take(padded);
  s.acc = take(padded * head_dim);
  s.q = take(padded * head_dim);
  return s;
}

// One unit: the states of its query_heads, and its way over the segments.
template <class T>
struct Walk {
  static constexpr bool kPairs = kPairDot && std::is_same<T, bf16>::value;
  const TreeAttentionArgs& args;
  const TreeAttentionUnit& unit;
  Scratch s;
  const bool packs = packs_keys(args.head_dim);
  Upcoming upcoming{};
  int announced = 0;  // how many tokens of the next segment `upcoming` holds
  // A negative scale is |scale| and a negated q, so that the largest score has the largest weight.
  const float scale = std::fabs(args.scale), sign = args.scale < 0 ? -1.0f : 1.0f;

  int query_heads() const { return (unit.query_end - unit.query_begin) * args.group; }
  int query_of(int query_head) const { return unit.query_begin + query_head / args.group; }
  int head_of(int query_head) const { return unit.kv_head * args.group + query_head % args.group; }

  // Empty states, and q as the products read it.
  void begin() {
    for (int i = 0; i < query_heads(); ++i) {
      const State empty = state(i);
      *empty.m = -kInf;
      *empty.s = 0.0f;
      for (int d = 0; d < args.head_dim; d += kLanes) store(empty.acc + d, set1(0.0f));
      const T* q = static_cast<const T*>(args.q) +
                   args.query_order[query_of(i)] * args.q_stride_query +
                   head_of(i) * args.q_stride_head;
      float* to = s.q + static_cast<int64_t>(i) * args.head_dim;
      if (kPairs) {
        for (int d = 0; d < args.head_dim; d += kLanes)
          store(reinterpret_cast<T*>(to) + d, mul(load(q + d), set1(sign)));
      } else {
        for (int d = 0; d < args.head_dim; d += kLanes) store(to + d, mul(load(q + d), set1(sign)));
      }
    }
  }

  // How many steps of the weighted sum a query_head that sees `visible` tokens takes with others.
  static int whole_steps(int visible, int tokens) {
    if (!kPairs) return visible;
    return visible == tokens ? (tokens + 1) / 2 : visible / 2;
  }

  State state(int query_head) const {
    return {s.m + query_head, s.s + query_head,
            s.acc + static_cast<int64_t>(query_head) * args.head_dim};
  }

  // Adds a chunk to the states of at most kBlockQueryHeads query_heads.
  template <bool kPrefetch, class K, class V>
  void block(const Readers& readers, int first, int query_heads, int tokens, const K* const* keys,
             const V* const* values) {
    int visible[kBlockQueryHeads], fewest = tokens, most = 0;
    for (int h = 0; h < query_heads; ++h) {
      visible[h] = readers.visible(query_of(first + h));
      fewest = visible[h] < fewest ? visible[h] : fewest;
      most = visible[h] > most ? visible[h] : most;
    }
    const float* q = s.q + static_cast<int64_t>(first) * args.head_dim;
    if (packs)
      score_packed<kPairs>(query_heads, q, args.head_dim, s.keys, most, s.scores, s.scores_stride);
    else
      score_unpacked<kPrefetch>(query_heads, q, args.head_dim, keys, most, s.scores,
                                s.scores_stride);
    for (int h = 0; h < query_heads; ++h) {
      upcoming.request();
      exponentiate<kPairs>(s.scores + h * s.scores_stride, visible[h], scale, state(first + h),
                           args.head_dim);
    }
    // The chunk is summed by itself, then added to the state: one chain of sums over a long path
    // would have a larger error than PyTorch.
    std::memset(s.sums, 0, sizeof(float) * query_heads * args.head_dim);
    const int joint = whole_steps(fewest, tokens);
    weigh_block<kPairs, kPrefetch>(query_heads, s.scores, s.scores_stride, values, 0, joint, s.sums,
                                   args.head_dim);
    for (int h = 0; h < query_heads; ++h) {
      const float* p = s.scores + h * s.scores_stride;
      float *sums = s.sums + h * args.head_dim, *acc = state(first + h).acc;
      const int whole = whole_steps(visible[h], tokens);
      upcoming.request();
      weigh_block<kPairs, false>(1, p, 0, values, joint, whole, sums, args.head_dim);
      if (kPairs && 2 * whole < visible[h])
        weigh_half_pair(p + whole, reinterpret_cast<const float*>(values[whole]), sums,
                        args.head_dim);
      for (int i = 0; i < args.head_dim; i += kLanes)
        store(acc + i, add(load(acc + i), load(sums + i)));
    }
  }

  // Adds a chunk to the states of queries [begin, end). `next`: the segment that is read after this
  // chunk, or -1 if this segment goes on or is the last.
  void chunk(const Readers& readers, int begin, int end, int next) {
    int most = 0;
    while (begin < end && readers.visible(begin) == 0) ++begin;
    for (int query = begin; query < end; ++query) {
      const int visible = readers.visible(query);
      most = visible > most ? visible : most;
    }
    if (most == 0) return;
    Chunk<T> c;
    const int located = packs ? most : most + kDotTokens + kTokensAhead;
    locate(args, unit.kv_head, readers.segment, readers.chunk_begin, located, &c);
    const int first = (begin - unit.query_begin) * args.group, count = (end - begin) * args.group;
    const int here = announced, calls = 2 * count + (packs ? (most + kLanes - 1) / kLanes : 0);
    announce(next, calls);
    if (packs) pack_keys<kPairs>(c.k, c.v, most, here, args.head_dim, s.keys, upcoming);
    if constexpr (kPairs) {
      pair_values(c.v, most, args.head_dim, s.values);
    } else {
      if (count <= kBlockQueryHeads) return blocks(readers, first, count, most, c.k, c.v);
      widen_tokens(c.v, most, args.head_dim, s.values);
      if (!packs) widen_tokens(c.k, most, args.head_dim, s.keys);
    }
    const float *keys[kMaxChunkTokens + kDotTokens + kTokensAhead],
        *values[kMaxChunkTokens + kDotTokens + kTokensAhead];
    for (int t = 0; t < located; ++t) {
      const int64_t offset = static_cast<int64_t>(t < most ? t : most - 1) * args.head_dim;
      keys[t] = s.keys + offset;
      values[t] = s.values + offset;
    }
    blocks(readers, first, count, most, keys, values);
  }

  // Query_heads [first, first + count) in blocks of about the same size.
  template <class K, class V>
  void blocks(const Readers& readers, int first, int count, int tokens, const K* const* keys,
              const V* const* values) {
    const int64_t number = (count + kBlockQueryHeads - 1) / kBlockQueryHeads;
    for (int64_t i = 0; i < number; ++i) {
      const int from = static_cast<int>(count * i / number);
      const int size = static_cast<int>(count * (i + 1) / number) - from;
      if (number == 1 && !packs)
        block<true>(readers, first + from, size, tokens, keys, values);
      else
        block<false>(readers, first + from, size, tokens, keys, values);
    }
  }

  // Adds the first tokens of a segment to `upcoming`: as many as `calls` calls can request.
  void announce(int segment, int calls) {
    upcoming.clear();
    announced = 0;
    if (segment < 0) return;
    const int64_t bytes = args.head_dim * sizeof(T);  // of one token's K or V
    const int64_t most = calls * Upcoming::kMostLines * 64 / (2 * bytes);
    const int64_t tokens = args.segment_lens[segment] < most ? args.segment_lens[segment] : most;
    const T* k = static_cast<const T*>(args.k) + unit.kv_head * args.k_stride_head;
    const T* v = static_cast<const T*>(args.v) + unit.kv_head * args.v_stride_head;
    for (const int32_t* page = args.page_ids + args.page_begin[segment];
         announced < tokens && !upcoming.full(); ++page) {
      const int64_t left = tokens - announced,
                    count = left < args.page_size ? left : args.page_size;
      upcoming.add(k + *page * args.k_stride_page, count * bytes);
      upcoming.add(v + *page * args.v_stride_page, count * bytes);
      announced += static_cast<int>(count);
    }
    upcoming.spread(calls);
  }

  // Whether a query of the unit reads the segment.
  bool reads(int index) const {
    return args.query_begin[index] < unit.query_end && args.query_end[index] > unit.query_begin;
  }

  // Reads a segment, chunk by chunk. `next`: the segment that is read after it, or -1.
  void segment(int index, int next) {
    int begin = args.query_begin[index], end = args.query_end[index];
    begin = begin > unit.query_begin ? begin : unit.query_begin;
    end = end < unit.query_end ? end : unit.query_end;
    const int step = cpu_chunk_tokens(args.head_dim), tokens = args.segment_lens[index];
    for (int64_t from = 0; from < tokens; from += step) {
      const bool last = tokens - from <= step;
      const int count = last ? static_cast<int>(tokens - from) : step;
      chunk(Readers{args, index, from, count}, begin, end, last ? next : -1);
    }
  }

  // out = acc / s and lse = scale * m + ln s; of a query_head that saw no token 0 and -inf.
  void finish() {
    for (int i = 0; i < query_heads(); ++i) {
      const int64_t query = args.query_order[query_of(i)];
      const int head = head_of(i);
      T* out =
          static_cast<T*>(args.out) + query * args.out_stride_query + head * args.out_stride_head;
      const State end = state(i);
      const bool empty = *end.m == -kInf;
      const Vec inverse = set1(1.0f / *end.s);
      for (int d = 0; d < args.head_dim; d += kLanes)
        store(out + d, empty ? set1(0.0f) : mul(load(end.acc + d), inverse));
      args.lse[query * args.lse_stride_query + head * args.lse_stride_head] =
          empty ? -kInf : *end.m * scale + std::log(*end.s);
    }
  }
};

template <class T>
void run(const TreeAttentionArgs& args, const TreeAttentionUnit& unit, float* scratch) {
  const int64_t queries = unit.query_end - unit.query_begin;
  Walk<T> walk{args, unit, carve(scratch, queries * args.group, args.head_dim)};
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
  with_type(args.dtype, [&](auto type) { run<decltype(type)>(args, unit, scratch); });
}

}  // namespace MF_NS
}  // namespace marco_fast
