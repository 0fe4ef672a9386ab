// Vectors of float32 lanes, with loads from and stores to memory of float32, bfloat16 or float16.
//
// Every source is compiled once for each instruction set that it uses, into a library of its own (see `build_cpu.py`).
// A vector has sixteen lanes with AVX-512 and eight with AVX2. Outside of this file and `simd_int.h`, kernels depend
// only on the number of lanes, and on whether pairs of bfloat16 can be multiplied.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace gridwork {

// Types of 16-bit values in memory, so that functions can be overloaded.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Number of contiguous values along the dimension of a sum: bfloat16 lies in pairs, as CPUs multiply it.
template <typename T>
constexpr int64_t kDepth = 1;
template <>
constexpr int64_t kDepth<bf16> = 2;

#define GRIDWORK_INLINE inline __attribute__((always_inline))
#define GRIDWORK_INLINE_LAMBDA __attribute__((always_inline))

// Calls body with the constants 0 … COUNT - 1. The loop is unrolled before the compiler allocates registers.
template <int COUNT, typename F>
GRIDWORK_INLINE void unroll(const F& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) GRIDWORK_INLINE_LAMBDA {
    (body(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, COUNT>{});
}

GRIDWORK_INLINE float widen(float v) { return v; }
GRIDWORK_INLINE float widen(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
GRIDWORK_INLINE float widen(f16 v) { return _cvtsh_ss(v.bits); }

#if defined(__AVX512F__)

using Vec = __m512;
constexpr int kLanes = 16;

GRIDWORK_INLINE Vec zero() { return _mm512_setzero_ps(); }
GRIDWORK_INLINE Vec set1(float v) { return _mm512_set1_ps(v); }
GRIDWORK_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
GRIDWORK_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
GRIDWORK_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
GRIDWORK_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
GRIDWORK_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
GRIDWORK_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
// Returns the second operand when either is NaN.
GRIDWORK_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
GRIDWORK_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
GRIDWORK_INLINE Vec round(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// v * 2^floor(n).
GRIDWORK_INLINE Vec scale_by_power(Vec v, Vec n) { return _mm512_scalef_ps(v, n); }
// v - floor(v).
GRIDWORK_INLINE Vec fraction(Vec v) { return _mm512_reduce_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
// v * 2^floor(n), where both v and the result are normal numbers.
GRIDWORK_INLINE Vec scale_by_floor(Vec v, Vec n) { return scale_by_power(v, n); }
// Exchanges lanes 2i and 2i + 1.
GRIDWORK_INLINE Vec swapped_pairs(Vec v) { return _mm512_permute_ps(v, 0xb1); }
GRIDWORK_INLINE Vec negated(Vec v) { return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)); }
// Negates lanes 2i.
GRIDWORK_INLINE Vec negated_even(Vec v) {
  return _mm512_xor_ps(v, _mm512_castsi512_ps(_mm512_set1_epi64(0x80000000)));
}
GRIDWORK_INLINE float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
GRIDWORK_INLINE float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }
// Lanes [0, count) of `a`, and the other lanes of `b`.
GRIDWORK_INLINE Vec first_lanes(Vec a, Vec b, int64_t count) {
  const __mmask16 mask = count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
  return _mm512_mask_mov_ps(b, mask, a);
}
// Lanes of `a` whose bit is set, the lowest first, and the other lanes of `b`.
GRIDWORK_INLINE Vec lanes_of(uint32_t bits, Vec a, Vec b) {
  return _mm512_mask_mov_ps(b, static_cast<__mmask16>(bits), a);
}
// `seen`, with NaN in the lanes where v is NaN.
GRIDWORK_INLINE Vec with_nan_of(Vec v, Vec seen) {
  return _mm512_mask_mov_ps(seen, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
}
GRIDWORK_INLINE bool has_nan(Vec v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0; }

GRIDWORK_INLINE Vec widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
#if defined(__AVX512BF16__)
// Numbers below the smallest normal number become 0.
GRIDWORK_INLINE __m256i narrow_bf16(Vec v) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)); }
#else
GRIDWORK_INLINE __m256i narrow_bf16(Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16));
}
#endif

GRIDWORK_INLINE Vec round_to_bf16(Vec v) { return widen(narrow_bf16(v)); }

GRIDWORK_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
GRIDWORK_INLINE Vec load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
GRIDWORK_INLINE Vec load(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
GRIDWORK_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
GRIDWORK_INLINE void store(bf16* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(v)); }
GRIDWORK_INLINE void store(f16* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

// The even values, and the odd values, of 2 * kLanes consecutive ones.
GRIDWORK_INLINE Vec load_even(const bf16* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16)); }
GRIDWORK_INLINE Vec load_odd(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

#if defined(__AVX512BF16__)
// A pair of consecutive values in each lane.
using PairVec = __m512bh;

GRIDWORK_INLINE PairVec load_pairs(const bf16* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
GRIDWORK_INLINE PairVec set1_pair(const bf16* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
}
// c plus both products of each pair.
GRIDWORK_INLINE Vec add_products(PairVec a, PairVec b, Vec c) { return _mm512_dpbf16_ps(c, a, b); }
#define GRIDWORK_PAIR_PRODUCTS 1
#endif

#else

using Vec = __m256;
constexpr int kLanes = 8;

GRIDWORK_INLINE Vec zero() { return _mm256_setzero_ps(); }
GRIDWORK_INLINE Vec set1(float v) { return _mm256_set1_ps(v); }
GRIDWORK_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
GRIDWORK_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
GRIDWORK_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
GRIDWORK_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
GRIDWORK_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
GRIDWORK_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
GRIDWORK_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
GRIDWORK_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
GRIDWORK_INLINE Vec round(Vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
GRIDWORK_INLINE Vec power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
// Multiplies twice, so that results below the smallest normal number are correct; |n| <= 250.
GRIDWORK_INLINE Vec scale_by_power(Vec v, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  return mul(mul(v, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}
GRIDWORK_INLINE Vec fraction(Vec v) { return sub(v, _mm256_floor_ps(v)); }
GRIDWORK_INLINE Vec scale_by_floor(Vec v, Vec n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(n)), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent));
}
GRIDWORK_INLINE Vec swapped_pairs(Vec v) { return _mm256_permute_ps(v, 0xb1); }
GRIDWORK_INLINE Vec negated(Vec v) { return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f)); }
GRIDWORK_INLINE Vec negated_even(Vec v) {
  return _mm256_xor_ps(v, _mm256_castsi256_ps(_mm256_set1_epi64x(0x80000000)));
}
GRIDWORK_INLINE float reduce_add(Vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
GRIDWORK_INLINE float reduce_max(Vec v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
GRIDWORK_INLINE Vec first_lanes(Vec a, Vec b, int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count > 8 ? 8 : count)), lane);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask));
}
GRIDWORK_INLINE Vec lanes_of(uint32_t bits, Vec a, Vec b) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i found = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(found, lane)));
}
// All bits set is a NaN.
GRIDWORK_INLINE Vec with_nan_of(Vec v, Vec seen) { return _mm256_or_ps(seen, _mm256_cmp_ps(v, v, _CMP_UNORD_Q)); }
GRIDWORK_INLINE bool has_nan(Vec v) { return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0; }

GRIDWORK_INLINE Vec widen(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }

// The nearest bfloat16 in the upper half of each lane; the lower half is undefined.
GRIDWORK_INLINE __m256i nearest_bf16(Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
}
GRIDWORK_INLINE Vec round_to_bf16(Vec v) {
  return _mm256_castsi256_ps(_mm256_and_si256(nearest_bf16(v), _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
GRIDWORK_INLINE __m128i narrow_bf16(Vec v) {
  const __m256i result = _mm256_srli_epi32(nearest_bf16(v), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
}

GRIDWORK_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
GRIDWORK_INLINE Vec load(const bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
GRIDWORK_INLINE Vec load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
GRIDWORK_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
GRIDWORK_INLINE void store(bf16* p, Vec v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(v)); }
GRIDWORK_INLINE void store(f16* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

GRIDWORK_INLINE __m256i load_bits(const bf16* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
GRIDWORK_INLINE Vec load_even(const bf16* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(load_bits(p), 16)); }

#endif

// Loads the first `count` values; the other lanes are 0.
template <typename T>
GRIDWORK_INLINE Vec load_some(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  alignas(64) T all[kLanes] = {};
  if (count > 0) std::memcpy(all, p, static_cast<size_t>(count) * sizeof(T));
  return load(all);
}

template <typename T>
GRIDWORK_INLINE void store_some(T* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  alignas(64) T all[kLanes];
  store(all, v);
  if (count > 0) std::memcpy(p, all, static_cast<size_t>(count) * sizeof(T));
}

// The type in which rows of type X are multiplied by memory of type W.
template <typename X, typename W>
struct ProductTypeOf {
  using type = float;
};
#if defined(GRIDWORK_PAIR_PRODUCTS)
template <>
struct ProductTypeOf<bf16, bf16> {
  using type = bf16;
};
#endif
template <typename X, typename W = X>
using ProductType = typename ProductTypeOf<X, W>::type;

// Rounds to the type of the second argument, which may be null.
GRIDWORK_INLINE Vec rounded(Vec v, const float*) { return v; }
GRIDWORK_INLINE Vec rounded(Vec v, const bf16*) { return round_to_bf16(v); }
GRIDWORK_INLINE Vec rounded(Vec v, const f16*) {
  alignas(64) f16 all[kLanes];
  store(all, v);
  return load(all);
}

// exp(x) to about one unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (the coefficients are
// those of the Taylor series to degree 7). 0 below -104, infinite above 104; NaN stays NaN.
GRIDWORK_INLINE Vec exp(Vec x) {
  x = max(set1(-104.0f), x);
  x = min(set1(104.0f), x);
  const Vec n = round(mul(x, set1(1.44269504f)));
  Vec r = fnma(n, set1(0.693359375f), x);
  r = fnma(n, set1(-2.12194440e-4f), r);
  Vec y = set1(1.0f / 5040);
  y = fma(y, r, set1(1.0f / 720));
  y = fma(y, r, set1(1.0f / 120));
  y = fma(y, r, set1(1.0f / 24));
  y = fma(y, r, set1(1.0f / 6));
  y = fma(y, r, set1(0.5f));
  y = fma(y, r, set1(1.0f));
  y = fma(y, r, set1(1.0f));
  return scale_by_power(y, n);
}

// 2^x: a polynomial on [0, 1), fitted for the smallest relative error with 1 at 0, times a power of two. Below -126 the
// result is 2^-126; x must not exceed 127; NaN stays NaN.
//   highest: the polynomial's coefficients except the constant 1.
template <int DEGREE>
GRIDWORK_INLINE Vec exp2_by(Vec x, const float (&highest)[DEGREE]) {
  x = max(set1(-126.0f), x);
  const Vec r = fraction(x);
  Vec y = set1(highest[0]);
  unroll<DEGREE - 1>([&](auto i) GRIDWORK_INLINE_LAMBDA { y = fma(y, r, set1(highest[i + 1])); });
  y = fma(y, r, set1(1.0f));
  return scale_by_floor(y, x);
}
// 2^x to a relative error of 3e-6.
GRIDWORK_INLINE Vec exp2_roughly(Vec x) {
  return exp2_by<4>(x, {1.34266892e-2f, 5.22424662e-2f, 2.41280209e-1f, 6.93044844e-1f});
}
// 2^x to a relative error of 2e-7.
GRIDWORK_INLINE Vec exp2_closely(Vec x) {
  return exp2_by<5>(x, {1.86713019e-3f, 9.01703006e-3f, 5.57999133e-2f, 2.40164450e-1f, 6.93151312e-1f});
}

}  // namespace gridwork
