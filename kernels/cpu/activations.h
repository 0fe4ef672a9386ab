// Activation functions of gated layers.
#pragma once

#include <cmath>

#include "simd.h"

namespace gridwork {

// x / (1 + exp(-x)) (Elfwing, Uchibe and Doya 2017, "Sigmoid-weighted linear units").
struct Silu {
  GRIDWORK_INLINE Vec operator()(Vec x) const { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }
};

// The tanh form of GELU (Hendrycks and Gimpel 2016), by 1 + tanh(y) = 2 / (1 + exp(-2y)).
struct GeluTanh {
  GRIDWORK_INLINE Vec operator()(Vec x) const {
    const Vec cubed = mul(mul(x, x), x);
    const Vec y = mul(set1(0.7978845608f), fma(set1(0.044715f), cubed, x));
    return div(x, add(set1(1.0f), exp(mul(set1(-2.0f), y))));
  }
};

// GELU itself, by the error function.
struct Gelu {
  GRIDWORK_INLINE Vec operator()(Vec x) const {
    alignas(64) float v[kLanes];
    store(v, x);
    for (float& f : v) f = 0.5f * f * (1.0f + std::erf(f * 0.70710678f));
    return load(v);
  }
};

// Calls body with the function: 0 SiLU, 1 GELU by tanh, 2 GELU.
template <typename F>
void by_activation(int64_t kind, const F& body) {
  if (kind == 0) body(Silu());
  else if (kind == 1) body(GeluTanh());
  else body(Gelu());
}

// activation(gate) * up of values of type T, rounded where the plain form in PyTorch rounds but for the result.
template <typename T, typename F>
GRIDWORK_INLINE Vec gated(Vec gate, Vec up, const F& activation) {
  return mul(rounded(activation(gate), static_cast<const T*>(nullptr)), up);
}

}  // namespace gridwork
