// activation(x), activation(gate) * up, and x times a number, with the roundings of the plain forms in PyTorch.

#include <algorithm>

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

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def("gated_activation(Tensor gate, Tensor up, int kind) -> Tensor");
  m.def("activation(Tensor x, int kind) -> Tensor");
  m.def("scale(Tensor x, float factor, bool divide) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("gated_activation", TORCH_BOX(&gated_activation_of));
  m.impl("activation", TORCH_BOX(&activation_of));
  m.impl("scale", TORCH_BOX(&scale_of));
}
