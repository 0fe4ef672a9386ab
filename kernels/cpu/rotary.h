// Rotary position embedding (Su et al. 2021, "RoFormer"), the form that pairs dimension i with i + size / 2, rounded
// where the plain form in PyTorch rounds: x * cos + rotate_half(x) * sin.
#pragma once

#include "simd.h"

namespace gridwork {

template <typename T>
struct Rotary {
  const T* cos = nullptr;  // [tokens, size], row stride below
  const T* sin = nullptr;
  int64_t stride = 0;
  int64_t size = 0;  // leading dimensions that are rotated, an even number; 0: none

  // One token's head, `width` values, into float32. `out` does not overlap `x`.
  void apply(const T* x, int64_t token, int64_t width, float* out) const {
    const T* c = cos + token * stride;
    const T* s = sin + token * stride;
    const T* type = nullptr;
    const int64_t half = size / 2;
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const Vec a = load(x + i), b = load(x + half + i);
      const Vec low = rounded(mul(a, load(c + i)), type);
      const Vec high = rounded(mul(b, load(c + half + i)), type);
      store(out + i, rounded(sub(low, rounded(mul(b, load(s + i)), type)), type));
      store(out + half + i, rounded(add(high, rounded(mul(a, load(s + half + i)), type)), type));
    }
    if (const int64_t left = half - i; left > 0) {
      const Vec a = load_some(x + i, left), b = load_some(x + half + i, left);
      const Vec low = rounded(mul(a, load_some(c + i, left)), type);
      const Vec high = rounded(mul(b, load_some(c + half + i, left)), type);
      store_some(out + i, rounded(sub(low, rounded(mul(b, load_some(s + i, left)), type)), type), left);
      store_some(out + half + i, rounded(add(high, rounded(mul(a, load_some(s + half + i, left)), type)), type), left);
    }
    for (int64_t d = size; d < width; ++d) out[d] = widen(x[d]);
  }
};

}  // namespace gridwork
