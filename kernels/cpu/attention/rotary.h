// Rotary position embedding (Su et al. 2021, "RoFormer"), rounded where the plain forms in PyTorch round.
#pragma once

#include <type_traits>

#include "common/simd.h"

namespace gridwork {

// Computes x * cos + swapped(x) * sin. `swapped` exchanges each dimension with its partner, and negates the first of
// the two. Partners are dimensions i and i + size / 2, or, if interleaved, 2i and 2i + 1. Computed in T and rounded
// after each operation; with float32 angles, computed in float32 and rounded once.
template <typename T>
struct Rotary {
  const void* cos = nullptr;  // [tokens, size], with the stride below
  const void* sin = nullptr;
  int64_t stride = 0;
  int64_t size = 0;  // number of leading dimensions to rotate, which is even; 0 for none
  bool float32_angles = false;  // whether cos and sin are float32, not T
  bool interleaved = false;

  // Rotates one head of a token, `width` values. `out` has type T or float32, and must not overlap `x`.
  template <typename Out>
  void apply(const T* x, int64_t token, int64_t width, Out* out) const {
    if (float32_angles) turn(x, angles<float>(cos, token), angles<float>(sin, token), out);
    else turn(x, angles<T>(cos, token), angles<T>(sin, token), out);
    for (int64_t d = size; d < width; ++d) {
      if constexpr (std::is_same_v<Out, T>) out[d] = x[d];
      else out[d] = widen(x[d]);
    }
  }

 private:
  template <typename A>
  const A* angles(const void* table, int64_t token) const {
    return static_cast<const A*>(table) + token * stride;
  }

  template <typename A, typename Out>
  void turn(const T* x, const A* c, const A* s, Out* out) const {
    if (interleaved) {
      int64_t i = 0;
      for (; i + kLanes <= size; i += kLanes) store(out + i, of_pairs<A, Out>(load(x + i), load(c + i), load(s + i)));
      if (const int64_t left = size - i; left > 0) {
        const Vec some = of_pairs<A, Out>(load_some(x + i, left), load_some(c + i, left), load_some(s + i, left));
        store_some(out + i, some, left);
      }
      return;
    }
    const int64_t half = size / 2;
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const Vec a = load(x + i), b = load(x + half + i);
      store(out + i, both<A, Out>(mul(a, load(c + i)), mul(negated(b), load(s + i))));
      store(out + half + i, both<A, Out>(mul(b, load(c + half + i)), mul(a, load(s + half + i))));
    }
    if (const int64_t left = half - i; left > 0) {
      const Vec a = load_some(x + i, left), b = load_some(x + half + i, left);
      const Vec low = both<A, Out>(mul(a, load_some(c + i, left)), mul(negated(b), load_some(s + i, left)));
      const Vec high = both<A, Out>(mul(b, load_some(c + half + i, left)), mul(a, load_some(s + half + i, left)));
      store_some(out + i, low, left);
      store_some(out + half + i, high, left);
    }
  }

  template <typename A, typename Out>
  static Vec of_pairs(Vec x, Vec c, Vec s) {
    return both<A, Out>(mul(x, c), mul(negated_even(swapped_pairs(x)), s));
  }

  // The sum of two products, each rounded to the type of the angles. The sum is rounded to T, unless storing it rounds.
  template <typename A, typename Out>
  static Vec both(Vec straight, Vec crossed) {
    const A* product = nullptr;
    const Vec sum = add(rounded(straight, product), rounded(crossed, product));
    if constexpr (std::is_same_v<Out, T>) return sum;
    else return rounded(sum, static_cast<const T*>(nullptr));
  }
};

}  // namespace gridwork
