// Vectors of integers for products of 8-bit values: sixteen sums of four products each with AVX-512, eight with AVX2.
#pragma once

#include "simd.h"

namespace gridwork {

#if defined(__AVX512F__)

using IntVec = __m512i;

GRIDWORK_INLINE IntVec int_zero() { return _mm512_setzero_si512(); }
GRIDWORK_INLINE IntVec load_int(const void* p) { return _mm512_loadu_si512(p); }
GRIDWORK_INLINE IntVec set_int(int32_t v) { return _mm512_set1_epi32(v); }
GRIDWORK_INLINE Vec to_float(IntVec v) { return _mm512_cvtepi32_ps(v); }
GRIDWORK_INLINE IntVec add_int16(IntVec a, IntVec b) { return _mm512_add_epi16(a, b); }
GRIDWORK_INLINE IntVec add_int32(IntVec a, IntVec b) { return _mm512_add_epi32(a, b); }
// 16-bit sums of two products each of an unsigned and a signed byte; they must not exceed 16 bits.
GRIDWORK_INLINE IntVec pairs(IntVec u, IntVec s) { return _mm512_maddubs_epi16(u, s); }
// 32-bit sums of neighbouring 16-bit values.
GRIDWORK_INLINE IntVec sum_pairs(IntVec v) { return _mm512_madd_epi16(v, _mm512_set1_epi16(1)); }
GRIDWORK_INLINE IntVec magnitude(IntVec v) { return _mm512_abs_epi8(v); }
// v where `sign` is positive, -v where it is negative.
GRIDWORK_INLINE IntVec with_sign(IntVec v, IntVec sign) {
  return _mm512_mask_sub_epi8(v, _mm512_movepi8_mask(sign), _mm512_setzero_si512(), v);
}
GRIDWORK_INLINE IntVec low_nibbles(IntVec v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
GRIDWORK_INLINE IntVec high_nibbles(IntVec v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

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

#endif

}  // namespace gridwork
