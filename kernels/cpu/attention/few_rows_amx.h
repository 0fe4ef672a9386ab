// Scores and weighted sums of a few rows by vector instructions, with AMX's order of summation and its rounding:
// results are equal bit for bit. A decode is limited by memory, which vector loads read faster than tile loads: with
// AMX the cache was read at 0.8 times the speed.
#pragma once

#include <algorithm>

#include "attention/attention_problem.h"
#include "common/amx.h"
#include "common/scratch.h"
#include "common/simd.h"

#if defined(GRIDWORK_AMX)
namespace gridwork {

// Maximum number of rows for which there are registers.
constexpr int64_t kFewRows = 4;

// Converts values [begin, end) of each row of [rows, stride] to float32, in the same layout. The end is extended to a
// multiple of kLanes.
GRIDWORK_INLINE void widen_rows(const bf16* values, int64_t rows, int64_t stride, int64_t begin, int64_t end,
                                float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = begin; i < end; i += kLanes) store(to + r * stride + i, load(values + r * stride + i));
  }
}

// Sums of the even and of the odd products of one tile operand, which AMX keeps apart.
template <int ROWS, int VECS>
struct PairSums {
  Vec even[ROWS][VECS], odd[ROWS][VECS];

  GRIDWORK_INLINE PairSums() {
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA { even[r][v] = zero(), odd[r][v] = zero(); });
    });
  }
  // x: a pair for each row, `stride` apart.  low, high: give vector v of the pairs' first or second values.
  template <typename Low, typename High>
  GRIDWORK_INLINE void add_products(const float* x, int64_t stride, const Low& low, const High& high) {
    Vec first[ROWS], second[ROWS];
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      first[r] = set1(x[r * stride]), second[r] = set1(x[r * stride + 1]);
    });
    unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      const Vec a = low(v), b = high(v);
      unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
        even[r][v] = fma(first[r], a, even[r][v]);
        odd[r][v] = fma(second[r], b, odd[r][v]);
      });
    });
  }
  GRIDWORK_INLINE Vec both(int r, int v) const { return add(even[r][v], odd[r][v]); }
};

// Computes scores of ROWS rows for GROUPS groups of positions.
//   query: float32 [ROWS, width].  steps: number of tile products, of step_pairs pairs each.
template <int ROWS, int GROUPS>
__attribute__((noinline)) void few_dots(const float* query, int64_t width, int64_t steps, int64_t step_pairs,
                                        const bf16* const* keys, float* score, Prefetcher& prefetcher) {
  Vec sum[ROWS][GROUPS];
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<GROUPS>([&](auto g) GRIDWORK_INLINE_LAMBDA { sum[r][g] = zero(); });
  });
  for (int64_t step = 0, pair = 0; step < steps; ++step) {
    PairSums<ROWS, GROUPS> sums;
    for (const int64_t end = pair + step_pairs; pair < end; ++pair) {
      unroll<GROUPS>([&](auto) GRIDWORK_INLINE_LAMBDA { prefetcher.prefetch(); });
      const auto at = [&](int g) GRIDWORK_INLINE_LAMBDA { return keys[g] + pair * 2 * kGroup; };
      sums.add_products(query + 2 * pair, width, [&](int g) GRIDWORK_INLINE_LAMBDA { return load_even(at(g)); },
                        [&](int g) GRIDWORK_INLINE_LAMBDA { return load_odd(at(g)); });
    }
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      unroll<GROUPS>([&](auto g) GRIDWORK_INLINE_LAMBDA { sum[r][g] = add(sum[r][g], sums.both(r, g)); });
    });
  }
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<GROUPS>([&](auto g) GRIDWORK_INLINE_LAMBDA { store(score + r * kSegment + g * kGroup, sum[r][g]); });
  });
}

// Computes weighted sums of VECS times kLanes dimensions of a segment's values, over the positions [first, last).
// Values of other positions may be NaN.
//   values: of each group from `begin` on, at the first dimension; begin: a position in the segment, a multiple of two
//   groups.  weight: float32 [ROWS, kSegment].  out: [ROWS, value_size].
template <int ROWS, int VECS>
__attribute__((noinline)) void few_sums(const bf16* const* values, int64_t value_size, int64_t begin, int64_t first,
                                        int64_t last, const float* weight, float* out, Prefetcher& prefetcher) {
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA { store(out + r * value_size + v * kLanes, zero()); });
  });
  for (int64_t two = begin; two < last; two += 2 * kGroup) {
    PairSums<ROWS, VECS> sums;
    for (int64_t group = two; group < std::min(two + 2 * kGroup, last); group += kGroup) {
      const bf16* at = values[(group - begin) / kGroup];
      const int64_t from = std::max(first, group), until = std::min(last, group + kGroup);
      for (int64_t position = from / 2 * 2; position < until; position += 2) {
        unroll<VECS>([&](auto) GRIDWORK_INLINE_LAMBDA { prefetcher.prefetch(); });
        const bf16* pair = at + (position - group) * value_size;
        const auto low = [&](int v) GRIDWORK_INLINE_LAMBDA { return load_even(pair + v * 2 * kLanes); };
        const auto high = [&](int v) GRIDWORK_INLINE_LAMBDA { return load_odd(pair + v * 2 * kLanes); };
        const auto none = [](int) GRIDWORK_INLINE_LAMBDA { return zero(); };
        if (position < first) sums.add_products(weight + position, kSegment, none, high);
        else if (position + 1 == last) sums.add_products(weight + position, kSegment, low, none);
        else sums.add_products(weight + position, kSegment, low, high);
      }
    }
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
        float* to = out + r * value_size + v * kLanes;
        store(to, add(load(to), sums.both(r, v)));
      });
    });
  }
}

// Calls body with the number of rows as a constant.
template <int ROWS = kFewRows, typename F>
void with_rows(int64_t rows, const F& body) {
  if (rows == ROWS) return body(std::integral_constant<int, ROWS>{});
  if constexpr (ROWS > 1) with_rows<ROWS - 1>(rows, body);
}

// Computes scores of `rows` rows for whole groups.
inline void few_scores(const bf16* query, int64_t rows, int64_t width, int64_t steps, int64_t step_pairs,
                       const bf16* const* keys, int64_t groups, float* score, Prefetcher& prefetcher) {
  thread_local Scratch scratch;
  float* wide = scratch.floats(static_cast<size_t>(rows * width + kLanes));
  widen_rows(query, rows, width, 0, width, wide);
  const FlushDenormals mode;
  with_rows(rows, [&]<int ROWS>(std::integral_constant<int, ROWS>) {
    constexpr int kTogether = ROWS <= 2 ? 4 : 2;
    int64_t g = 0;
    for (; g + kTogether <= groups; g += kTogether) {
      few_dots<ROWS, kTogether>(wide, width, steps, step_pairs, keys + g, score + g * kGroup, prefetcher);
    }
    for (; g < groups; ++g) few_dots<ROWS, 1>(wide, width, steps, step_pairs, keys + g, score + g * kGroup, prefetcher);
  });
}

// Computes weighted sums of all dimensions; `first` and `last` are relative to the segment's first position.
inline void few_weighted_sums(const bf16* const* values, int64_t value_size, int64_t rows, int64_t begin, int64_t first,
                              int64_t last, const bf16* weight, float* out, Prefetcher& prefetcher) {
  thread_local Scratch scratch;
  float* wide = scratch.floats(static_cast<size_t>(rows * kSegment));
  widen_rows(weight, rows, kSegment, begin, last, wide);
  const FlushDenormals mode;
  with_rows(rows, [&]<int ROWS>(std::integral_constant<int, ROWS>) {
    constexpr int kMax = ROWS <= 3 ? 4 : 2;
    const bf16* at[kSegment / kGroup];
    for (int64_t d = 0; d < value_size;) {
      for (int64_t g = 0; begin + g * kGroup < last; ++g) at[g] = values[g] + 2 * d;
      if (d + kMax * kLanes <= value_size) {
        few_sums<ROWS, kMax>(at, value_size, begin, first, last, wide, out + d, prefetcher), d += kMax * kLanes;
      } else {
        few_sums<ROWS, 1>(at, value_size, begin, first, last, wide, out + d, prefetcher), d += kLanes;
      }
    }
  });
}

}  // namespace gridwork
#endif
