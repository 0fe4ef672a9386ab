// Activation functions.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/kernels.h"
#include "common/simd.h"

namespace gridwork {

// exp(-x) for results that are rounded to T. For bfloat16 an approximation between 2^-126 and 2^126 is exact enough.
template <typename T>
GRIDWORK_INLINE Vec exp_of_negative(Vec x) {
  if constexpr (std::is_same_v<T, bf16>) return exp2_closely(min(set1(126.0f), mul(set1(-1.44269504f), x)));
  else return exp(sub(zero(), x));
}

// x / (1 + exp(-x)) (Elfwing, Uchibe and Doya 2017, "Sigmoid-weighted linear units").
template <typename T>
struct Silu {
  GRIDWORK_INLINE Vec operator()(Vec x) const { return div(x, add(set1(1.0f), exp_of_negative<T>(x))); }
};

// The logistic function.
template <typename T>
struct Sigmoid {
  GRIDWORK_INLINE Vec operator()(Vec x) const { return div(set1(1.0f), add(set1(1.0f), exp_of_negative<T>(x))); }
};

// The tanh form of GELU (Hendrycks and Gimpel 2016), by 1 + tanh(y) = 2 / (1 + exp(-2y)).
template <typename T>
struct GeluTanh {
  GRIDWORK_INLINE Vec operator()(Vec x) const {
    const Vec cubed = mul(mul(x, x), x);
    const Vec twice = mul(set1(2 * 0.7978845608f), fma(set1(0.044715f), cubed, x));
    return div(x, add(set1(1.0f), exp_of_negative<T>(twice)));
  }
};

// GELU by the error function.
struct Gelu {
  GRIDWORK_INLINE Vec operator()(Vec x) const {
    alignas(64) float v[kLanes];
    store(v, x);
    for (float& f : v) f = 0.5f * f * (1.0f + std::erf(f * 0.70710678f));
    return load(v);
  }
};

struct Relu {
  // NaN stays NaN.
  GRIDWORK_INLINE Vec operator()(Vec x) const { return max(zero(), x); }
};

// The tanh form of GELU as some models write it, 0.5 x (1 + tanh(y)): each operation rounds to T.
template <typename T>
struct GeluTanhInSteps {
  GRIDWORK_INLINE Vec operator()(Vec x) const {
    if constexpr (std::is_same_v<T, float>) return GeluTanh<float>()(x);
    const T* type = nullptr;
    const Vec cubed = rounded(mul(rounded(mul(x, x), type), x), type);
    const Vec inner = rounded(add(x, rounded(mul(set1(0.044715f), cubed), type)), type);
    const Vec y = rounded(mul(set1(0.7978845608f), inner), type);
    // tanh(y) = (1 - e) / (1 + e), which reaches 1 or -1 long before e is infinite.
    const Vec e = exp(mul(set1(-2.0f), min(set1(20.0f), max(set1(-20.0f), y))));
    const Vec tanh = rounded(div(sub(set1(1.0f), e), add(set1(1.0f), e)), type);
    return mul(rounded(mul(set1(0.5f), x), type), rounded(add(set1(1.0f), tanh), type));
  }
};

// Calls body with the activation for values of type T; `kind` must be one that gates.
template <typename T, typename F>
void dispatch_activation(Activation kind, const F& body) {
  if (kind == Activation::silu) body(Silu<T>());
  else if (kind == Activation::gelu_tanh) body(GeluTanh<T>());
  else if (kind == Activation::sigmoid) body(Sigmoid<T>());
  else body(Gelu());
}

// Calls body with the activation for values of type T, of any kind.
template <typename T, typename F>
void dispatch_any_activation(Activation kind, const F& body) {
  if (kind == Activation::relu) body(Relu());
  else if (kind == Activation::gelu_tanh_in_steps) body(GeluTanhInSteps<T>());
  else dispatch_activation<T>(kind, body);
}

// activation(gate) * up for values of type T. The activation is rounded as in PyTorch, the product is not rounded.
template <typename T, typename F>
GRIDWORK_INLINE Vec gated(Vec gate, Vec up, const F& activation) {
  return mul(rounded(activation(gate), static_cast<const T*>(nullptr)), up);
}

}  // namespace gridwork
