// activation(x), activation(gate) * up, products, conversions, and softplus, with the roundings of the plain forms in
// PyTorch.

#include <algorithm>
#include <cmath>

#include "common/tensors.h"
#include "common/thread_pool.h"
#include "rowwise/activations.h"

namespace {

using namespace gridwork;

constexpr int64_t kChunkValues = 8192;

// Sets each vector of the rows to value(row, index of the first lane, number of values left in the row).
template <typename T, typename F>
void over_rows(int64_t count, int64_t width, T* out, const F& value) {
  parallel_for(count, std::max<int64_t>(1, kChunkValues / width), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      for (int64_t i = 0; i < width; i += kLanes) store_some(out + r * width + i, value(r, i, width - i), width - i);
    }
  });
}

// gate, up: the same type, [1, …, rows, width], values of a row contiguous. kind: see
// Activation.
Tensor gated_activation_of(const Tensor gate, const Tensor up, int64_t kind) {
  Tensor out = torch::stable::new_empty(gate, shape(gate));
  if (out.numel() == 0) return out;
  gated_activation(type_of(gate), {gate.data_ptr(), gate.stride(-2)}, {up.data_ptr(), up.stride(-2)}, out.size(-2),
                   out.size(-1), static_cast<Activation>(kind), out.data_ptr());
  return out;
}

// x: any shape. kind: see Activation.
Tensor activation_of(const Tensor x, int64_t kind) {
  const Tensor values = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(values, shape(values));
  if (out.numel() == 0) return out;
  const int64_t width = out.size(-1);
  activation(type_of(values), {values.data_ptr(), width}, out.numel() / width, width, static_cast<Activation>(kind),
             out.data_ptr());
  return out;
}

// x: any shape; divided by the factor, or multiplied by it.
Tensor scale_of(const Tensor x, double factor, bool divide) {
  const Tensor values = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(values, shape(values));
  if (out.numel() == 0) return out;
  const int64_t width = out.size(-1);
  scale(type_of(values), {values.data_ptr(), width}, out.numel() / width, width, static_cast<float>(factor), divide,
        out.data_ptr());
  return out;
}

// x: [1, …, rows, width] or [rows, width], values of a row contiguous; bias, factor: float32 [width].
Tensor softplus_scaled_of(const Tensor x, const Tensor bias, const Tensor factor) {
  Tensor out = torch::stable::new_empty(x, shape(x), ScalarType::Float);
  if (out.numel() == 0) return out;
  softplus_scaled(type_of(x), {x.data_ptr(), x.stride(-2)}, out.numel() / out.size(-1), out.size(-1),
                  data<float>(bias), data<float>(factor), mutable_data<float>(out));
  return out;
}

}  // namespace

void gridwork::gated_activation(Type type, const Rows& gate, const Rows& up, int64_t count, int64_t width,
                                Activation kind, void* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    const T *gates = static_cast<const T*>(gate.data), *ups = static_cast<const T*>(up.data);
    dispatch_activation<T>(kind, [&](const auto& function) {
      over_rows(count, width, static_cast<T*>(out), [&](int64_t r, int64_t i, int64_t left) GRIDWORK_INLINE_LAMBDA {
        const Vec a = load_some(gates + r * gate.stride + i, left), b = load_some(ups + r * up.stride + i, left);
        return gated<T>(a, b, function);
      });
    });
  });
}

void gridwork::activation(Type type, const Rows& x, int64_t count, int64_t width, Activation kind, void* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    const T* from = static_cast<const T*>(x.data);
    dispatch_any_activation<T>(kind, [&](const auto& function) {
      over_rows(count, width, static_cast<T*>(out), [&](int64_t r, int64_t i, int64_t left) GRIDWORK_INLINE_LAMBDA {
        return function(load_some(from + r * x.stride + i, left));
      });
    });
  });
}

void gridwork::scale(Type type, const Rows& x, int64_t count, int64_t width, float factor, bool divide, void* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    const T* from = static_cast<const T*>(x.data);
    const Vec by = set1(factor);
    over_rows(count, width, static_cast<T*>(out), [&](int64_t r, int64_t i, int64_t left) GRIDWORK_INLINE_LAMBDA {
      const Vec v = load_some(from + r * x.stride + i, left);
      return divide ? div(v, by) : mul(v, by);
    });
  });
}

void gridwork::multiply(Type type, const Rows& a, const Rows& b, int64_t count, int64_t width, void* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    const T *left = static_cast<const T*>(a.data), *right = static_cast<const T*>(b.data);
    over_rows(count, width, static_cast<T*>(out), [&](int64_t r, int64_t i, int64_t rest) GRIDWORK_INLINE_LAMBDA {
      return mul(load_some(left + r * a.stride + i, rest), load_some(right + r * b.stride + i, rest));
    });
  });
}

void gridwork::convert(Type type, const Rows& x, int64_t count, int64_t width, bool widens, void* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    const auto run = [&]<typename From, typename To>(const From* from, To* to) {
      over_rows(count, width, to, [&](int64_t r, int64_t i, int64_t rest) GRIDWORK_INLINE_LAMBDA {
        return load_some(from + r * x.stride + i, rest);
      });
    };
    if (widens) run(static_cast<const T*>(x.data), static_cast<float*>(out));
    else run(static_cast<const float*>(x.data), static_cast<T*>(out));
  });
}

void gridwork::softplus_scaled(Type type, const Rows& x, int64_t count, int64_t width, const float* bias,
                               const float* factor, float* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    const T* from = static_cast<const T*>(x.data);
    parallel_for(count, std::max<int64_t>(1, kChunkValues / (16 * width)), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        for (int64_t i = 0; i < width; ++i) {
          const float sum = widen(from[r * x.stride + i]) + bias[i];
          out[r * width + i] = factor[i] * (sum > 20.0f ? sum : std::log1p(std::exp(sum)));
        }
      }
    });
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def("gated_activation(Tensor gate, Tensor up, int kind) -> Tensor");
  m.def("activation(Tensor x, int kind) -> Tensor");
  m.def("scale(Tensor x, float factor, bool divide) -> Tensor");
  m.def("softplus_scaled(Tensor x, Tensor bias, Tensor factor) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("gated_activation", TORCH_BOX(&gated_activation_of));
  m.impl("activation", TORCH_BOX(&activation_of));
  m.impl("scale", TORCH_BOX(&scale_of));
  m.impl("softplus_scaled", TORCH_BOX(&softplus_scaled_of));
}
