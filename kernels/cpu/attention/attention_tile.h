// Attention of one tile: scores, softmax weights and weighted sums of a segment of the context, and the merging of
// segments. Where bfloat16 is multiplied in pairs, softmax weights are rounded to bfloat16.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/attention_amx.h"
#include "attention/attention_problem.h"
#include "common/row_products.h"
#include "common/scratch.h"

namespace gridwork {

// Approximate number of rows of a tile: enough to reuse every loaded key. 48 or 96 rows made no difference (Zen 1).
constexpr int64_t kTileRows = 24;
constexpr int kGroupVecs = kGroup / kLanes;
// Maximum number of sums in registers.
constexpr int kSums = kLanes == 16 ? 24 : 12;

// Computes ROWS rows of scores for GROUPS groups of positions. keys: a pointer for each group; dimensions are `stride`
// positions apart.
//   prefetcher: prefetches as many lines as this function reads of keys; may be null.
template <typename T, int ROWS, int GROUPS>
__attribute__((noinline)) void dot(const ProductType<T>* query, int64_t width, const T* const* keys, int64_t stride,
                                   float* score, Prefetcher* prefetcher) {
  constexpr int kVecs = GROUPS * kGroupVecs;
  Vec sum[ROWS][kVecs];
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { sum[r][v] = zero(); });
  });
  for (int64_t d = 0; d < width; d += kDepth<T>) {
    if (prefetcher != nullptr) unroll<GROUPS>([&](auto) GRIDWORK_INLINE_LAMBDA { prefetcher->prefetch(); });
    const T* at[kVecs];
    unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      at[v] = keys[v / kGroupVecs] + d * stride + v % kGroupVecs * kLanes * kDepth<T>;
    });
    multiply<T, ROWS, kVecs>(query + d, width, at, sum);
  }
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { store(score + r * kSegment + v * kLanes, sum[r][v]); });
  });
}

// Maximum number of rows whose sums for `groups` groups fit into the registers.
constexpr int max_dot_rows(int groups) { return std::min(kSums / 2, kSums / (groups * kGroupVecs)); }

template <typename T, int GROUPS, int ROWS = max_dot_rows(GROUPS)>
void dot_of(int64_t rows, const ProductType<T>* query, int64_t width, const T* const* keys, int64_t stride,
            float* score, Prefetcher* prefetcher) {
  if (rows == ROWS) return dot<T, ROWS, GROUPS>(query, width, keys, stride, score, prefetcher);
  if constexpr (ROWS > 1) dot_of<T, GROUPS, ROWS - 1>(rows, query, width, keys, stride, score, prefetcher);
}

// Computes scores of all rows, in tiles of about the same number of rows.
template <typename T, int GROUPS>
void dot_rows_of(int64_t rows, const ProductType<T>* query, int64_t width, const T* const* keys, int64_t stride,
                 float* score, Prefetcher& prefetcher) {
  constexpr int64_t kMax = max_dot_rows(GROUPS);
  for (int64_t r = 0, tiles = (rows + kMax - 1) / kMax, some; r < rows; r += some, --tiles) {
    some = (rows - r + tiles - 1) / tiles;
    dot_of<T, GROUPS>(some, query + r * width, width, keys, stride, score + r * kSegment,
                      r == 0 ? &prefetcher : nullptr);
  }
}

// Gathers the keys of one group of positions into the layout of a block of kGroup, from blocks of other sizes.
template <typename T>
void gather_group(const Problem<T>& p, int64_t table_row, int64_t head, int64_t first, int64_t count, T* to) {
  constexpr int64_t kTogether = kDepth<T>;
  for (int64_t j = 0; j < kGroup; ++j) {
    const T* from = j < count ? p.key_at(table_row, first + j, head) : nullptr;
    for (int64_t d = 0; d < p.query_width(); ++d) {
      const int64_t row = d / kTogether * kTogether;
      to[row * kGroup + j * kTogether + d % kTogether] =
          from != nullptr ? from[row * p.block_size + d % kTogether] : T{};
    }
  }
}

// Computes scores of all rows for the positions [first, last), extended to whole groups.
template <typename T>
void scores(const Problem<T>& p, int64_t table_row, int64_t head, int64_t first, int64_t last,
            const ProductType<T>* query, int64_t rows, float* score, Prefetcher& prefetcher) {
  const int64_t origin = first / kSegment * kSegment, width = p.query_width();
  const bool whole = p.block_size % kGroup == 0;
  thread_local Scratch gathered;
  for (int64_t group = first / kGroup * kGroup; group < last;) {
    constexpr int64_t kMax = 4;
    const T* keys[kMax];
    int64_t left = std::min(kMax, (last - group + kGroup - 1) / kGroup), stride = p.block_size;
    if (whole) {
      for (int64_t g = 0; g < left; ++g) keys[g] = p.key_at(table_row, group + g * kGroup, head);
    } else {
      auto* to = reinterpret_cast<T*>(gathered.floats(static_cast<size_t>(width * kGroup)));
      gather_group(p, table_row, head, group, std::min(kGroup, last - group), to);
      keys[0] = to;
      left = 1, stride = kGroup;
    }
    // With few rows, several groups give enough independent sums to hide the latency of multiply-add.
    const bool two = left >= 2 && (rows <= max_dot_rows(2) || kGroupVecs == 1);
    const int64_t count = rows <= max_dot_rows(4) && left == 4 ? 4 : two ? 2 : 1;
    float* s = score + (group - origin);
    if (count == 4) dot_rows_of<T, 4>(rows, query, width, keys, stride, s, prefetcher);
    else if (count == 2) dot_rows_of<T, 2>(rows, query, width, keys, stride, s, prefetcher);
    else dot_rows_of<T, 1>(rows, query, width, keys, stride, s, prefetcher);
    group += count * kGroup;
  }
}

// Computes softmax weights of scaled scores. For 16-bit values an approximate exponential is exact enough.
template <typename T>
class SoftmaxWeight {
 public:
  SoftmaxWeight(float scale, float largest) : factor_(set1(scale * kLog2E)), shift_(set1(-largest * kLog2E)) {}
  Vec operator()(Vec score) const { return exp2_roughly(fma(score, factor_, shift_)); }

 private:
  static constexpr float kLog2E = 1.44269504f;
  Vec factor_, shift_;
};
// Exact weights for float32; the weight of the largest score is 1.
template <>
class SoftmaxWeight<float> {
 public:
  SoftmaxWeight(float scale, float largest) : factor_(set1(scale)), shift_(set1(largest)) {}
  Vec operator()(Vec score) const { return exp(sub(mul(score, factor_), shift_)); }

 private:
  Vec factor_, shift_;
};

// Turns one row's scores for [first, last), extended to multiples of `whole`, into softmax weights. Positions outside
// of [begin, end) are not visible, and get 0. Also gives the largest score and the sum of the weights. `weight` may be
// the same memory as `score`.
template <typename T>
void softmax_row(const Problem<T>& p, float* score, ProductType<T>* weight, int64_t first, int64_t last, int64_t whole,
           int64_t begin, int64_t end, int64_t position, int64_t query_head, float& largest, float& total) {
  const int64_t origin = first / kSegment * kSegment;
  const int64_t from = (first - origin) / whole * whole, to = (last - origin + whole - 1) / whole * whole;
  largest = kMinusInfinity;
  total = 0;
  begin -= origin, end -= origin;
  if (end <= from || begin >= to) {
    for (int64_t j = from; j < to; j += kLanes) store(weight + j, zero());
    return;
  }
  // Lanes outside of [begin, end) may hold NaN.
  const auto seen = [=](int64_t j, Vec v, Vec otherwise) {
    if (j >= begin && j + kLanes <= end) return v;
    return first_lanes(otherwise, first_lanes(v, otherwise, end - j), begin - j);
  };
  float scale = p.scale;
  if (p.softcap > 0 || p.slopes != nullptr || !(scale > 0)) {
    scale = 1;
    for (int64_t j = std::max(begin, from); j < std::min(end, to); ++j) {
      score[j] *= p.scale;
      if (p.softcap > 0) score[j] = p.softcap * std::tanh(score[j] / p.softcap);
      if (p.slopes != nullptr) score[j] += p.slopes[query_head] * static_cast<float>(origin + j - position);
    }
  }
  Vec most = set1(kMinusInfinity), sum = zero();
  // A fully visible segment: scores are read once, with the same results.
  constexpr int kVecs = kSegment / kLanes;
  if constexpr (kVecs <= 8) {
    if (begin <= 0 && end >= kSegment && to - from == kSegment) {
      Vec all[kVecs];
      unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { all[v] = load(score + v * kLanes), most = max(most, all[v]); });
      largest = reduce_max(most) * scale;
      const SoftmaxWeight<T> weight_of(scale, largest);
      unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
        const Vec w = weight_of(all[v]);
        store(weight + v * kLanes, w);
        sum = add(sum, w);
      });
      total = reduce_add(sum);
      return;
    }
  }
  const auto softmax_visible = [&](const auto& seen) GRIDWORK_INLINE_LAMBDA {
    for (int64_t j = from; j < to; j += kLanes) most = max(most, seen(j, load(score + j), set1(kMinusInfinity)));
    largest = reduce_max(most) * scale;
    const SoftmaxWeight<T> weight_of(scale, largest);
    for (int64_t j = from; j < to; j += kLanes) {
      const Vec w = seen(j, weight_of(load(score + j)), zero());
      store(weight + j, w);
      sum = add(sum, w);
    }
    total = reduce_add(sum);
  };
  if (begin <= from && end >= to) softmax_visible([](int64_t, Vec v, Vec) GRIDWORK_INLINE_LAMBDA { return v; });
  else softmax_visible(seen);
}

// Gathers the values of one group of positions into the layout of a block of kGroup, from smaller blocks. Values
// outside of [first, last) are 0.
template <typename T>
void gather_values(const Problem<T>& p, int64_t table_row, int64_t head, int64_t group, int64_t first, int64_t last,
                   T* to) {
  constexpr int64_t kTogether = kDepth<T>;
  std::fill_n(to, kGroup * p.value_size, T{});
  for (int64_t position = first; position < last; ++position) {
    const int64_t from = position % p.block_size, at = position - group;
    const T* block = p.value_block(table_row, position, head) + from / kTogether * kTogether * p.value_size;
    T* row = to + at / kTogether * kTogether * p.value_size;
    for (int64_t d = 0; d < p.value_size; ++d) {
      row[d * kTogether + at % kTogether] = block[d * kTogether + from % kTogether];
    }
  }
}

// Copies `count` dimensions of values. Of a pair of positions, a position that is not wanted gives 0, since its value
// may be NaN.
template <typename T>
GRIDWORK_INLINE void copy_values(const T* from, int64_t count, bool low, bool high, T* to) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (kDepth<T> == 1) to[i] = from[i];
    else to[2 * i] = low ? from[2 * i] : T{}, to[2 * i + 1] = high ? from[2 * i + 1] : T{};
  }
}

// Pointers to a segment's values, by group.
template <typename T>
struct SegmentValues {
  const T* groups[kSegment / kGroup];

  // Finds the groups of [first, last), where blocks are whole groups.
  SegmentValues(const Problem<T>& p, int64_t table_row, int64_t head, int64_t first, int64_t last) {
    if (p.block_size % kGroup != 0) return;
    for (int64_t group = first / kGroup * kGroup, i = 0; group < last; group += kGroup, ++i) {
      groups[i] = p.value_block(table_row, group, head) + p.place_in_block(group) * p.value_size;
    }
  }
};

// Adds the weighted values of `count` whole groups to ROWS rows of VECS vectors in `out`; `fresh`: starts from zero.
// It is not inlined, and partial groups have a function of their own: together they would need too many registers.
//   values: of each group, at the first dimension.  prefetcher: prefetches as many lines as are read; may be null.
template <typename T, int ROWS, int VECS>
__attribute__((noinline)) void sum_groups(const T* const* values, int64_t count, int64_t value_size,
                                          const ProductType<T>* weight, bool fresh, float* out, Prefetcher* prefetcher) {
  constexpr int64_t kTogether = kDepth<T>, kVecValues = kLanes * kTogether;
  constexpr int kLines = std::max<int64_t>(1, VECS * kVecValues * static_cast<int64_t>(sizeof(T)) / kLine);
  const int64_t step = kTogether * value_size;
  Vec sum[ROWS][VECS];
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      sum[r][v] = fresh ? zero() : load(out + r * value_size + v * kLanes);
    });
  });
  for (; count > 0; --count) {
    const T* value = *values++;
    for (const ProductType<T>* end = weight + kGroup; weight < end; weight += kTogether, value += step) {
      if (prefetcher != nullptr) unroll<kLines>([&](auto) GRIDWORK_INLINE_LAMBDA { prefetcher->prefetch(); });
      const T* at[VECS];
      unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA { at[v] = value + v * kVecValues; });
      multiply<T, ROWS, VECS>(weight, kSegment, at, sum);
    }
  }
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA { store(out + r * value_size + v * kLanes, sum[r][v]); });
  });
}

// The same for the positions [begin, end) of one group, and for `count` dimensions.
template <typename T, int ROWS, int VECS>
__attribute__((noinline)) void sum_edge(const T* values, int64_t begin, int64_t end, int64_t count, int64_t value_size,
                                        const ProductType<T>* weight, bool fresh, float* out) {
  constexpr int64_t kTogether = kDepth<T>, kVecValues = kLanes * kTogether;
  Vec sum[ROWS][VECS];
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      sum[r][v] = fresh ? zero() : load_some(out + r * value_size + v * kLanes, count - v * kLanes);
    });
  });
  for (int64_t position = begin / kTogether * kTogether; position < end; position += kTogether) {
    const bool low = position >= begin, high = position + kTogether <= end;
    const T* value = values + position * value_size;
    alignas(64) T copy[VECS * kVecValues];
    if (count < VECS * kLanes || !low || !high) {
      std::fill_n(copy, VECS * kVecValues, T{});
      copy_values(value, count, low, high, copy);
      value = copy;
    }
    const T* at[VECS];
    unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA { at[v] = value + v * kVecValues; });
    multiply<T, ROWS, VECS>(weight + position, kSegment, at, sum);
  }
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      store_some(out + r * value_size + v * kLanes, sum[r][v], count - v * kLanes);
    });
  });
}

// The same for the positions [first, last) of a segment.
template <typename T, int ROWS, int VECS>
void sum_values(const Problem<T>& p, int64_t table_row, int64_t head, int64_t first, int64_t last,
                const SegmentValues<T>& segment, const ProductType<T>* weight, int64_t dimension, float* out,
                Prefetcher* prefetcher) {
  const int64_t origin = first / kSegment * kSegment;
  const int64_t count = std::min<int64_t>(VECS * kLanes, p.value_size - dimension);
  thread_local Scratch gathered;
  const T* values[kSegment / kGroup];
  out += dimension;
  bool fresh = true;
  for (int64_t group = first / kGroup * kGroup, i = 0; group < last; fresh = false) {
    const int64_t begin = std::max(first, group) - group, end = std::min(last, group + kGroup) - group;
    int64_t groups = 1;
    if (p.block_size % kGroup != 0) {
      T* to = reinterpret_cast<T*>(gathered.floats(static_cast<size_t>(kGroup * p.value_size)));
      gather_values(p, table_row, head, group, group + begin, group + end, to);
      values[0] = to + dimension * kDepth<T>;
    } else {
      if (begin == 0 && end == kGroup) groups = (last - group) / kGroup;
      for (int64_t g = 0; g < groups; ++g) values[g] = segment.groups[i + g] + dimension * kDepth<T>;
    }
    const ProductType<T>* weights = weight + group - origin;
    if (begin == 0 && end == kGroup && count == VECS * kLanes) {
      sum_groups<T, ROWS, VECS>(values, groups, p.value_size, weights, fresh, out, prefetcher);
    } else {
      groups = 1;
      sum_edge<T, ROWS, VECS>(values[0], begin, end, count, p.value_size, weights, fresh, out);
    }
    group += groups * kGroup, i += groups;
  }
}

template <typename T, int VECS, int ROWS>
void sum_values_of(int64_t rows, const Problem<T>& p, int64_t table_row, int64_t head, int64_t first, int64_t last,
                   const SegmentValues<T>& segment, const ProductType<T>* weight, int64_t dimension, float* out,
                   Prefetcher* prefetcher) {
  if (rows == ROWS) {
    return sum_values<T, ROWS, VECS>(p, table_row, head, first, last, segment, weight, dimension, out, prefetcher);
  }
  if constexpr (ROWS > 1) {
    sum_values_of<T, VECS, ROWS - 1>(rows, p, table_row, head, first, last, segment, weight, dimension, out, prefetcher);
  }
}

template <typename T>
class TileAttention {
 public:
  TileAttention(const Problem<T>& problem, const Tile& tile, int64_t head) : p_(problem), tile_(tile), head_(head) {}

  int64_t rows() const { return tile_.count * p_.group(); }

  // Computes one segment into `to`. prefetcher: the memory that this thread reads next. query, score and weight: the
  // thread's own memory.
  void segment(int64_t index, const ProductType<T>* query, float* score, ProductType<T>* weight, const Partial& to,
               Prefetcher& prefetcher, AmxAttention<T>& unit) const {
    const int64_t row = p_.sequence[tile_.token], begin = first(index), end = last(index);
    // Turns the scores of rows [r, stop) into weights; `scores` begins with row r.
    const auto softmax_rows = [&](int64_t r, int64_t stop, float* scores, int64_t whole) {
      const int64_t group = p_.group();
      for (int64_t token = tile_.token + r / group, g = r % group; r < stop; ++r, scores += kSegment) {
        const int64_t length = p_.length[token];
        softmax_row(p_, scores, weight + r * kSegment, begin, end, whole, p_.begin(length), length, length - 1,
              head_ * group + g, to.largest[r], to.total[r]);
        if (++g == group) g = 0, ++token;
      }
    };
    if constexpr (AmxAttention<T>::kAvailable) {
      if (unit.takes(p_)) {
        unit.prepare(p_, rows());
        // Few rows at a time, so that their scores stay in the L1 cache.
        unit.scores(p_, row, head_, begin, end, query, score, prefetcher, [&](int64_t r, int64_t stop, float* scores) {
          softmax_rows(r, stop, scores, unit.kTwoGroups);
        });
        return unit.sum_values(p_, row, head_, begin, end, weight, to.sum, prefetcher);
      }
    }
    scores(p_, row, head_, begin, end, query, rows(), score, prefetcher);
    softmax_rows(0, rows(), score, kLanes);
    const SegmentValues<T> values(p_, row, head_, begin, end);
    for (int64_t d = 0; d < p_.value_size;) {
      const int64_t left = p_.value_size - d;
      if (rows() <= kSums / 4 && left >= 4 * kLanes) {
        sum_dimensions<4, kSums / 4>(row, begin, end, values, weight, d, to.sum, prefetcher), d += 4 * kLanes;
      } else if (left >= 2 * kLanes) {
        sum_dimensions<2, kSums / 2>(row, begin, end, values, weight, d, to.sum, prefetcher), d += 2 * kLanes;
      } else {
        sum_dimensions<1, kSums / 2>(row, begin, end, values, weight, d, to.sum, prefetcher), d += kLanes;
      }
    }
  }

  // Copies the rotated queries to `query` [rows, query_width()].
  void load_queries(ProductType<T>* query) const {
    const int64_t width = p_.query_width();
    each_row([&](int64_t r, int64_t token, int64_t query_head) {
      const T* from = p_.query + token * p_.query_token_stride + query_head * p_.query_head_stride;
      ProductType<T>* to = query + r * width;
      p_.rotary.apply(from, token, p_.key_size, to);
      std::fill(to + p_.key_size, to + width, ProductType<T>{});
    });
  }

  // Initialises `to` before the first segment. A sink is one more logit without a value.
  void start(const Partial& to) const {
    each_row([&](int64_t r, int64_t, int64_t query_head) {
      to.largest[r] = p_.sinks != nullptr ? p_.sinks[query_head] : kMinusInfinity;
      to.total[r] = p_.sinks != nullptr ? 1.0f : 0.0f;
    });
    std::fill_n(to.sum, rows() * p_.value_size, 0.0f);
  }

  // Merges a segment into `to`, which holds the segments before it.
  void add_segment(int64_t index, const Partial& segment, const Partial& to) const {
    // Factors of all rows, including rows that see nothing of the segment.
    thread_local Scratch scratch;
    const int64_t room = (rows() + kLanes - 1) / kLanes * kLanes;
    float *keep = scratch.floats(static_cast<size_t>(2 * room)), *take = keep + room;
    for (int64_t r = 0; r < rows(); r += kLanes) {
      const int64_t left = rows() - r;
      const Vec before = load_some(to.largest + r, left), more = load_some(segment.largest + r, left);
      const Vec largest = max(before, more);
      store(keep + r, exp(sub(before, largest))), store(take + r, exp(sub(more, largest)));
    }
    const int64_t begin = first(index), end = last(index);
    each_row([&](int64_t r, int64_t token, int64_t) {
      const int64_t length = p_.length[token];
      if (length <= begin || p_.begin(length) >= end) return;
      to.largest[r] = std::max(to.largest[r], segment.largest[r]);
      to.total[r] = std::fma(to.total[r], keep[r], segment.total[r] * take[r]);
      const Vec kept = set1(keep[r]), taken = set1(take[r]);
      float* sum = to.sum + r * p_.value_size;
      const float* more = segment.sum + r * p_.value_size;
      for (int64_t d = 0; d < p_.value_size; d += kLanes) {
        const int64_t left = p_.value_size - d;
        store_some(sum + d, fma(load_some(sum + d, left), kept, mul(load_some(more + d, left), taken)), left);
      }
    });
  }

  void finish(const Partial& all) const {
    each_row([&](int64_t r, int64_t token, int64_t query_head) {
      T* out = p_.out + (token * p_.query_heads + query_head) * p_.value_size;
      const Vec inverse = set1(1.0f / all.total[r]);
      const float* sum = all.sum + r * p_.value_size;
      for (int64_t d = 0; d < p_.value_size; d += kLanes) {
        const int64_t left = p_.value_size - d;
        store_some(out + d, mul(load_some(sum + d, left), inverse), left);
      }
    });
  }

 private:
  // Computes VECS vectors of dimensions of the weighted sums of all rows, in tiles of about the same number of rows.
  template <int VECS, int MAX>
  void sum_dimensions(int64_t row, int64_t begin, int64_t end, const SegmentValues<T>& values,
                      const ProductType<T>* weight, int64_t dimension, float* sum, Prefetcher& prefetcher) const {
    for (int64_t r = 0, tiles = (rows() + MAX - 1) / MAX, some; r < rows(); r += some, --tiles) {
      some = (rows() - r + tiles - 1) / tiles;
      sum_values_of<T, VECS, MAX>(some, p_, row, head_, begin, end, values, weight + r * kSegment, dimension,
                                   sum + r * p_.value_size, r == 0 ? &prefetcher : nullptr);
    }
  }

  // Calls body(row, token, query head) for each row.
  template <typename F>
  GRIDWORK_INLINE void each_row(const F& body) const {
    const int64_t group = p_.group();
    for (int64_t t = 0, row = 0; t < tile_.count; ++t) {
      for (int64_t g = 0; g < group; ++g, ++row) body(row, tile_.token + t, head_ * group + g);
    }
  }

  int64_t first(int64_t segment) const { return tile_.first(segment); }
  int64_t last(int64_t segment) const { return tile_.last(segment); }

  const Problem<T>& p_;
  const Tile& tile_;
  int64_t head_;
};

}  // namespace gridwork
