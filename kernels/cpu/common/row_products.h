// The innermost loop of linear layers and attention: products of rows and vectors, summed in registers.
//
// AVX2 has sixteen registers, of which twelve hold sums. The load of an operand and all its multiplications are
// therefore one piece of assembly: a compiler that loads operands earlier spills sums to memory.
#pragma once

#include "common/simd.h"

namespace gridwork {

#if defined(__AVX512F__)

GRIDWORK_INLINE Vec operand(const float* p, int) { return load(p); }
GRIDWORK_INLINE Vec operand(const f16* p, int) { return load(p); }
// The even or the odd values of pairs.
GRIDWORK_INLINE Vec operand(const bf16* p, int odd) { return odd == 0 ? load_even(p) : load_odd(p); }

// sum[i * STRIDE] += by[i] * the value at `p`, or the vector there.
template <int COUNT, int STRIDE>
GRIDWORK_INLINE void add_products_of_one(const float* p, const Vec* by, Vec* sum) {
  const Vec value = set1(*p);
  unroll<COUNT>([&](auto i) GRIDWORK_INLINE_LAMBDA { sum[i * STRIDE] = fma(by[i], value, sum[i * STRIDE]); });
}
template <int COUNT, int STRIDE, int ODD, typename T>
GRIDWORK_INLINE void add_products_of_vector(const T* p, const Vec* by, Vec* sum) {
  const Vec vector = operand(p, ODD);
  unroll<COUNT>([&](auto i) GRIDWORK_INLINE_LAMBDA { sum[i * STRIDE] = fma(by[i], vector, sum[i * STRIDE]); });
}

#else

alignas(32) constexpr uint32_t kUpperHalves[8] = {0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000,
                                                  0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000};

#define GRIDWORK_PRODUCT(i) "\n\tvfmadd231ps %[operand], %[by" #i "], %[sum" #i "]"
#define GRIDWORK_SUM(i) [sum##i] "+x"(sum##i)
#define GRIDWORK_BY(i) [by##i] "x"(by[i])
// LOAD: an instruction that loads [memory] into [operand].
#define GRIDWORK_ADD_PRODUCTS(LOAD, MEMORY)                                                                            \
  static_assert(COUNT >= 1 && COUNT <= 3);                                                                             \
  Vec operand, sum0 = sum[0];                                                                                          \
  if constexpr (COUNT == 1) {                                                                                          \
    asm(LOAD GRIDWORK_PRODUCT(0)                                                                                       \
        : GRIDWORK_SUM(0), [operand] "=&x"(operand)                                                                    \
        : GRIDWORK_BY(0), [memory] "m"(MEMORY), [mask] "m"(kUpperHalves));                                             \
  } else {                                                                                                             \
    Vec sum1 = sum[STRIDE];                                                                                            \
    if constexpr (COUNT == 2) {                                                                                        \
      asm(LOAD GRIDWORK_PRODUCT(0) GRIDWORK_PRODUCT(1)                                                                 \
          : GRIDWORK_SUM(0), GRIDWORK_SUM(1), [operand] "=&x"(operand)                                                 \
          : GRIDWORK_BY(0), GRIDWORK_BY(1), [memory] "m"(MEMORY), [mask] "m"(kUpperHalves));                           \
    } else {                                                                                                           \
      Vec sum2 = sum[2 * STRIDE];                                                                                      \
      asm(LOAD GRIDWORK_PRODUCT(0) GRIDWORK_PRODUCT(1) GRIDWORK_PRODUCT(2)                                             \
          : GRIDWORK_SUM(0), GRIDWORK_SUM(1), GRIDWORK_SUM(2), [operand] "=&x"(operand)                                \
          : GRIDWORK_BY(0), GRIDWORK_BY(1), GRIDWORK_BY(2), [memory] "m"(MEMORY), [mask] "m"(kUpperHalves));           \
      sum[2 * STRIDE] = sum2;                                                                                          \
    }                                                                                                                  \
    sum[STRIDE] = sum1;                                                                                                \
  }                                                                                                                    \
  sum[0] = sum0;

template <int COUNT, int STRIDE>
GRIDWORK_INLINE void add_products_of_one(const float* p, const Vec* by, Vec* sum) {
  GRIDWORK_ADD_PRODUCTS("vbroadcastss %[memory], %[operand]", *p)
}
template <int COUNT, int STRIDE, int ODD>
GRIDWORK_INLINE void add_products_of_vector(const float* p, const Vec* by, Vec* sum) {
  GRIDWORK_ADD_PRODUCTS("vmovups %[memory], %[operand]", *reinterpret_cast<const __m256i_u*>(p))
}
template <int COUNT, int STRIDE, int ODD>
GRIDWORK_INLINE void add_products_of_vector(const f16* p, const Vec* by, Vec* sum) {
  GRIDWORK_ADD_PRODUCTS("vcvtph2ps %[memory], %[operand]", *reinterpret_cast<const __m128i_u*>(p))
}
template <int COUNT, int STRIDE, int ODD>
GRIDWORK_INLINE void add_products_of_vector(const bf16* p, const Vec* by, Vec* sum) {
  const auto& memory = *reinterpret_cast<const __m256i_u*>(p);
  if constexpr (ODD == 0) {
    GRIDWORK_ADD_PRODUCTS("vmovdqu %[memory], %[operand]\n\tvpslld $16, %[operand], %[operand]", memory)
  } else {
    GRIDWORK_ADD_PRODUCTS("vmovdqu %[memory], %[operand]\n\tvpand %[mask], %[operand], %[operand]", memory)
  }
}

GRIDWORK_INLINE Vec operand(const float* p, int) { return load(p); }
GRIDWORK_INLINE Vec operand(const f16* p, int) { return load(p); }
GRIDWORK_INLINE Vec operand(const bf16* p, int odd) {
  if (odd == 0) return load_even(p);
  __m256i bits = load_bits(p);
  asm("vpand %1, %0, %0" : "+x"(bits) : "m"(kUpperHalves));
  return _mm256_castsi256_ps(bits);
}

#undef GRIDWORK_ADD_PRODUCTS
#undef GRIDWORK_BY
#undef GRIDWORK_SUM
#undef GRIDWORK_PRODUCT

#endif

// Adds to sum[r][v] the products of the r-th row's kDepth values and the v-th vector's.
//   x: rows, `x_stride` values apart.  y: a pointer for each vector.
template <typename T, int ROWS, int VECS>
GRIDWORK_INLINE void multiply(const float* x, int64_t x_stride, const T* const (&y)[VECS], Vec (&sum)[ROWS][VECS]) {
  unroll<kDepth<T>>([&](auto d) GRIDWORK_INLINE_LAMBDA {
    // The operands that are fewer stay in registers.
    if constexpr (ROWS < VECS) {
      Vec value[ROWS];
      unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA { value[r] = set1(x[r * x_stride + d]); });
      unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
        add_products_of_vector<ROWS, VECS, d>(y[v], value, &sum[0][v]);
      });
    } else {
      Vec vector[VECS];
      unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA { vector[v] = operand(y[v], d); });
      unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
        add_products_of_one<VECS, 1>(x + r * x_stride + d, vector, sum[r]);
      });
    }
  });
}

#if defined(GRIDWORK_PAIR_PRODUCTS)
// The same, with one product for each pair.
template <typename T, int ROWS, int VECS>
GRIDWORK_INLINE void multiply(const bf16* x, int64_t x_stride, const bf16* const (&y)[VECS], Vec (&sum)[ROWS][VECS]) {
  PairVec pairs[VECS];
  unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA { pairs[v] = load_pairs(y[v]); });
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    const PairVec value = set1_pair(x + r * x_stride);
    unroll<VECS>([&](auto v) GRIDWORK_INLINE_LAMBDA { sum[r][v] = add_products(value, pairs[v], sum[r][v]); });
  });
}
#endif

}  // namespace gridwork
