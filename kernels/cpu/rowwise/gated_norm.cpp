// RMS norms whose values or results are multiplied by the activation of a gate, with the roundings of the plain forms
// in PyTorch.

#include <algorithm>
#include <cmath>

#include "common/scratch.h"
#include "common/tensors.h"
#include "common/thread_pool.h"
#include "rowwise/activations.h"

namespace {

using namespace gridwork;

// Number of values of a chunk of work.
constexpr int64_t kChunkValues = 8192;

// Computes one group of a part. values: memory for `width` values. X, O: types of x and out.
template <typename T, typename X, typename O, typename F>
void norm_group(const GatedNorm& n, const X* x, const T* gate, const T* weight, float* values, const F& activation,
                O* out) {
  const int64_t width = n.width;
  const X* type = nullptr;
  Vec squares = zero();
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t left = width - i;
    Vec v = load_some(x + i, left);
    if (n.gate_first) v = first_lanes(mul(v, activation(load_some(gate + i, left))), zero(), left);
    squares = fma(v, v, squares);
    store_some(values + i, v, left);
  }
  const Vec scale = set1(1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(width) + n.eps));
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t left = width - i;
    const Vec v = rounded(mul(load_some(values + i, left), scale), type);
    Vec result = rounded(mul(load_some(weight + i, left), v), type);
    if (!n.gate_first) result = mul(result, activation(load_some(gate + i, left)));
    store_some(out + i, result, left);
  }
}

template <typename T, typename X, typename O, typename F>
void norm_rows(const GatedNorm& n, const F& activation) {
  const int64_t part = n.groups * n.width, row = n.parts * part;
  parallel_for(n.count, std::max<int64_t>(1, kChunkValues / row), [&](int64_t first, int64_t last) {
    thread_local Scratch scratch;
    float* values = scratch.floats(static_cast<size_t>(n.width));
    for (int64_t r = first; r < last; ++r) {
      const X* x = static_cast<const X*>(n.x.data) + r * n.x.stride;
      const T* gate = static_cast<const T*>(n.gate.data) + r * n.gate.stride;
      O* out = static_cast<O*>(n.out) + r * row;
      for (int64_t at = 0; at < row; at += n.width) {
        const T* weight = static_cast<const T*>(n.weight) + at % part;
        norm_group<T, X, O>(n, x + at, gate + at, weight, values, activation, out + at);
      }
    }
  });
}

// x, gate: [rows, parts, groups * width], a row's values contiguous; weight: [groups * width]. float32_out: else the
// result has the gate's type.
Tensor gated_norm_of(const Tensor x, const Tensor gate, const Tensor weight, double eps, int64_t width, bool gate_first,
                     int64_t activation, bool float32_out) {
  const Type type = type_of(gate);
  const ScalarType result = float32_out ? ScalarType::Float : gate.scalar_type();
  Tensor out = torch::stable::new_empty(x, shape(x), result);
  if (out.numel() == 0) return out;
  gated_norm({
      .type = type,
      .float32_in = type_of(x) == Type::float32,
      .float32_out = float32_out,
      .gate_first = gate_first,
      .activation = static_cast<Activation>(activation),
      .x = {x.data_ptr(), x.stride(0)},
      .gate = {gate.data_ptr(), gate.stride(0)},
      .weight = weight.data_ptr(),
      .count = x.size(0),
      .parts = x.size(1),
      .groups = x.size(2) / width,
      .width = width,
      .eps = static_cast<float>(eps),
      .out = out.data_ptr(),
  });
  return out;
}

}  // namespace

void gridwork::gated_norm(const GatedNorm& norm) {
  dispatch_type(norm.type, [&]<typename T>(T*) {
    const auto run = [&]<typename X, typename O>(X*, O*) {
      if (norm.activation == Activation::sigmoid) norm_rows<T, X, O>(norm, Sigmoid<float>());
      else norm_rows<T, X, O>(norm, Silu<float>());
    };
    T* own = nullptr;
    float* wide = nullptr;
    if (norm.float32_in && norm.float32_out) run(wide, wide);
    else if (norm.float32_in) run(wide, own);
    else if (norm.float32_out) run(own, wide);
    else run(own, own);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def(
      "gated_norm(Tensor x, Tensor gate, Tensor weight, float eps, int width, bool gate_first, int activation, "
      "bool float32_out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) { m.impl("gated_norm", TORCH_BOX(&gated_norm_of)); }
