// Norms of rows, and of sums of rows that are outputs too, in float32, with the roundings of the plain forms in
// PyTorch: RMS norms (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"), and layer norms (Ba, Kiros and
// Hinton 2016, "Layer Normalization").

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "common/simd.h"
#include "common/tensors.h"
#include "common/thread_pool.h"

namespace {

using namespace gridwork;

// Number of values of a chunk of work.
constexpr int64_t kChunkValues = 16384;

// Sums term(values, sum, number of values left) over a row. Lanes after the end of the row hold 0, and `term` must not
// add anything for them.
template <typename T, typename F>
GRIDWORK_INLINE float summed(const T* x, int64_t width, const F& term) {
  Vec even = zero(), odd = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    even = term(load(x + i), even, kLanes);
    odd = term(load(x + i + kLanes), odd, kLanes);
  }
  for (; i < width; i += kLanes) even = term(load_some(x + i, width - i), even, width - i);
  return reduce_add(add(even, odd));
}

// x, out: [width]; see Norm.
template <typename T>
void rms_row(const T* x, const Norm& norm, T* out) {
  const int64_t width = norm.width;
  const T* weight = static_cast<const T*>(norm.weight);
  const float squares = summed(x, width, [](Vec v, Vec sum, int64_t) { return fma(v, v, sum); });
  const Vec scale = set1(1.0f / std::sqrt(squares / static_cast<float>(width) + norm.eps)), one = set1(1.0f);
  const bool plus_one = norm.kind == NormKind::rms_plus_one, first = norm.kind == NormKind::rms;
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec v = mul(load_some(x + i, width - i), scale), w = load_some(weight + i, width - i);
    store_some(out + i, mul(plus_one ? add(one, w) : w, first ? rounded(v, x) : v), width - i);
  }
}

template <typename T>
void layer_row(const T* x, const Norm& norm, T* out) {
  const int64_t width = norm.width;
  const T *weight = static_cast<const T*>(norm.weight), *bias = static_cast<const T*>(norm.bias);
  const float total = summed(x, width, [](Vec v, Vec sum, int64_t) { return add(v, sum); });
  const Vec mean = set1(total / static_cast<float>(width));
  const float squares = summed(x, width, [&](Vec v, Vec sum, int64_t lanes) {
    const Vec d = first_lanes(sub(v, mean), zero(), lanes);
    return fma(d, d, sum);
  });
  const Vec scale = set1(1.0f / std::sqrt(squares / static_cast<float>(width) + norm.eps));
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t left = width - i;
    Vec v = mul(sub(load_some(x + i, left), mean), scale);
    if (weight != nullptr) v = mul(v, load_some(weight + i, left));
    if (bias != nullptr) v = add(v, load_some(bias + i, left));
    store_some(out + i, v, left);
  }
}

template <typename T>
void row(const T* x, const Norm& norm, T* out) {
  if (norm.kind == NormKind::layer) layer_row(x, norm, out);
  else rms_row(x, norm, out);
}

template <typename T>
void sum(const T* a, const T* b, T* out, int64_t width) {
  for (int64_t i = 0; i < width; i += kLanes) {
    store_some(out + i, add(load_some(a + i, width - i), load_some(b + i, width - i)), width - i);
  }
}

template <typename F>
void over_rows(int64_t count, int64_t width, const F& body) {
  parallel_for(count, std::max<int64_t>(1, kChunkValues / width), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) body(r);
  });
}

Tensor normed(const Tensor& x, const Norm& norm) {
  const Tensor values = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(values, shape(values));
  normalise(type_of(values), {values.data_ptr(), norm.width}, values.numel() / norm.width, 1, norm, out.data_ptr());
  return out;
}

// x + residual, rounded, and its norm.
std::tuple<Tensor, Tensor> added_and_normed(const Tensor& x, const Tensor& residual, const Norm& norm) {
  const Tensor a = torch::stable::contiguous(x), b = torch::stable::contiguous(residual);
  Tensor total = torch::stable::new_empty(a, shape(a)), out = torch::stable::new_empty(a, shape(a));
  add_and_normalise(type_of(a), {a.data_ptr(), norm.width}, {b.data_ptr(), norm.width}, a.numel() / norm.width, norm,
                    total.data_ptr(), out.data_ptr());
  return {total, out};
}

// form: a NormKind other than layer.
Norm rms(const Tensor& weight, double eps, int64_t form) {
  return {static_cast<NormKind>(form), weight.data_ptr(), nullptr, weight.size(0), static_cast<float>(eps)};
}

Norm layer(const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, int64_t width, double eps) {
  return {NormKind::layer, weight.has_value() ? weight->data_ptr() : nullptr,
          bias.has_value() ? bias->data_ptr() : nullptr, width, static_cast<float>(eps)};
}

// x: [..., width]; weight: the same type, [width]. Returns the shape and type of x.
Tensor rms_norm_of(const Tensor x, const Tensor weight, double eps, int64_t form) {
  return normed(x, rms(weight, eps, form));
}

// x, residual: the same shape and type.
std::tuple<Tensor, Tensor> add_rms_norm_of(const Tensor x, const Tensor residual, const Tensor weight, double eps,
                                           int64_t form) {
  return added_and_normed(x, residual, rms(weight, eps, form));
}

// x: [..., width]; weight, bias: the same type, contiguous, [width]. Returns the shape and type of x.
Tensor layer_norm_of(const Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias, double eps) {
  return normed(x, layer(weight, bias, x.size(-1), eps));
}

std::tuple<Tensor, Tensor> add_layer_norm_of(const Tensor x, const Tensor residual, std::optional<Tensor> weight,
                                             std::optional<Tensor> bias, double eps) {
  return added_and_normed(x, residual, layer(weight, bias, x.size(-1), eps));
}

}  // namespace

void gridwork::normalise(Type type, const Rows& x, int64_t count, int64_t parts, const Norm& norm, void* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    const T* from = static_cast<const T*>(x.data);
    T* to = static_cast<T*>(out);
    over_rows(count, parts * norm.width, [&](int64_t r) {
      for (int64_t i = 0; i < parts; ++i) {
        row(from + r * x.stride + i * norm.width, norm, to + (r * parts + i) * norm.width);
      }
    });
  });
}

void gridwork::add_and_normalise(Type type, const Rows& a, const Rows& b, int64_t count, const Norm& norm, void* total,
                                 void* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    const T *ap = static_cast<const T*>(a.data), *bp = static_cast<const T*>(b.data);
    T *totals = static_cast<T*>(total), *to = static_cast<T*>(out);
    over_rows(count, norm.width, [&](int64_t r) {
      T* both = totals + r * norm.width;
      sum(ap + r * a.stride, bp + r * b.stride, both, norm.width);
      row(both, norm, to + r * norm.width);
    });
  });
}

void gridwork::add(Type type, const Rows& a, const Rows& b, int64_t count, int64_t width, void* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    const T *ap = static_cast<const T*>(a.data), *bp = static_cast<const T*>(b.data);
    over_rows(count, width, [&](int64_t r) {
      sum(ap + r * a.stride, bp + r * b.stride, static_cast<T*>(out) + r * width, width);
    });
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps, int form) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, int form) -> (Tensor, Tensor)");
  m.def("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor");
  m.def("add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm_of));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm_of));
  m.impl("layer_norm", TORCH_BOX(&layer_norm_of));
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm_of));
}
