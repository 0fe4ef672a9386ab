// Vectors of integers for products of 8-bit values: sixteen sums of four products with AVX-512, eight with AVX2.
#pragma once

#include "common/simd.h"

namespace gridwork {

#if defined(__AVX512F__)

using IntVec = __m512i;

GRIDWORK_INLINE IntVec int_zero() { return _mm512_setzero_si512(); }
GRIDWORK_INLINE IntVec load_int(const void* p) { return _mm512_loadu_si512(p); }
GRIDWORK_INLINE IntVec set_int(int32_t v) { return _mm512_set1_epi32(v); }
GRIDWORK_INLINE Vec to_float(IntVec v) { return _mm512_cvtepi32_ps(v); }
GRIDWORK_INLINE IntVec add_int16(IntVec a, IntVec b) { return _mm512_add_epi16(a, b); }
GRIDWORK_INLINE IntVec add_int32(IntVec a, IntVec b) { return _mm512_add_epi32(a, b); }
// 16-bit sums of two products of an unsigned and a signed byte; sums must fit into 16 bits.
GRIDWORK_INLINE IntVec pairs(IntVec u, IntVec s) { return _mm512_maddubs_epi16(u, s); }
// 32-bit sums of adjacent 16-bit values.
GRIDWORK_INLINE IntVec sum_pairs(IntVec v) { return _mm512_madd_epi16(v, _mm512_set1_epi16(1)); }
GRIDWORK_INLINE IntVec magnitude(IntVec v) { return _mm512_abs_epi8(v); }
// v where `sign` is positive, -v where it is negative.
GRIDWORK_INLINE IntVec with_sign(IntVec v, IntVec sign) {
  return _mm512_mask_sub_epi8(v, _mm512_movepi8_mask(sign), _mm512_setzero_si512(), v);
}
GRIDWORK_INLINE IntVec low_nibbles(IntVec v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
GRIDWORK_INLINE IntVec high_nibbles(IntVec v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
// Stores whole numbers of at most 127.
GRIDWORK_INLINE void store_int8(int8_t* p, Vec whole) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole)));
}

#else

using IntVec = __m256i;

GRIDWORK_INLINE IntVec int_zero() { return _mm256_setzero_si256(); }
GRIDWORK_INLINE IntVec load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
GRIDWORK_INLINE IntVec set_int(int32_t v) { return _mm256_set1_epi32(v); }
GRIDWORK_INLINE Vec to_float(IntVec v) { return _mm256_cvtepi32_ps(v); }
GRIDWORK_INLINE IntVec add_int16(IntVec a, IntVec b) { return _mm256_add_epi16(a, b); }
GRIDWORK_INLINE IntVec add_int32(IntVec a, IntVec b) { return _mm256_add_epi32(a, b); }
GRIDWORK_INLINE IntVec pairs(IntVec u, IntVec s) { return _mm256_maddubs_epi16(u, s); }
GRIDWORK_INLINE IntVec sum_pairs(IntVec v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }
GRIDWORK_INLINE IntVec magnitude(IntVec v) { return _mm256_abs_epi8(v); }
GRIDWORK_INLINE IntVec with_sign(IntVec v, IntVec sign) { return _mm256_sign_epi8(v, sign); }
GRIDWORK_INLINE IntVec low_nibbles(IntVec v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
GRIDWORK_INLINE IntVec high_nibbles(IntVec v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
GRIDWORK_INLINE void store_int8(int8_t* p, Vec whole) {
  const __m256i v = _mm256_cvtps_epi32(whole);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

#endif

// add_products adds the four products of unsigned and signed bytes in each lane; the sum of two products must fit into
// 16 bits. add_few does the same while sums fit into 16 bits, and `total` gives its sums.
#if defined(__AVX512VNNI__)
GRIDWORK_INLINE IntVec add_products(IntVec u, IntVec s, IntVec sum) { return _mm512_dpbusd_epi32(sum, u, s); }
GRIDWORK_INLINE IntVec add_few(IntVec u, IntVec s, IntVec sum) { return add_products(u, s, sum); }
GRIDWORK_INLINE IntVec total(IntVec sum) { return sum; }
#else
GRIDWORK_INLINE IntVec add_products(IntVec u, IntVec s, IntVec sum) { return add_int32(sum, sum_pairs(pairs(u, s))); }
GRIDWORK_INLINE IntVec add_few(IntVec u, IntVec s, IntVec sum) { return add_int16(sum, pairs(u, s)); }
GRIDWORK_INLINE IntVec total(IntVec sum) { return sum_pairs(sum); }
#endif

// Sums of products of signed bytes of weights and inputs:
//   of_inputs(total): the start value of a sum, where `total` is the sum of the inputs;
//   signed_weights(w): weights in the form that `add_signed` takes.
#if defined(__AVX512VNNI__)
// Weights are multiplied as w + 128, which is unsigned. The start value corrects for it.
GRIDWORK_INLINE IntVec of_inputs(float total) { return set_int(-128 * static_cast<int32_t>(total)); }
GRIDWORK_INLINE IntVec signed_weights(IntVec w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
GRIDWORK_INLINE IntVec add_signed(IntVec w, IntVec v, IntVec sum) { return add_products(w, v, sum); }
#else
struct SignedWeights {
  IntVec values, magnitudes;
};
GRIDWORK_INLINE IntVec of_inputs(float) { return int_zero(); }
GRIDWORK_INLINE SignedWeights signed_weights(IntVec w) { return {w, magnitude(w)}; }
GRIDWORK_INLINE IntVec add_signed(const SignedWeights& w, IntVec v, IntVec sum) {
  return add_products(w.magnitudes, with_sign(v, w.values), sum);
}
#endif

}  // namespace gridwork
