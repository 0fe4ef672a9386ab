// activation(gate) * up, rounded where the plain form in PyTorch rounds.

#include <algorithm>

#include "activations.h"
#include "tensors.h"
#include "thread_pool.h"

namespace {

using namespace gridwork;

constexpr int64_t kChunkValues = 8192;

template <typename T, typename F>
void over_rows(const Rows& gate, const Rows& up, int64_t count, int64_t width, T* out, const F& activation) {
  const T *gates = static_cast<const T*>(gate.data), *ups = static_cast<const T*>(up.data);
  parallel_for(count, std::max<int64_t>(1, kChunkValues / width), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t left = width - i;
        const Vec a = load_some(gates + r * gate.stride + i, left), b = load_some(ups + r * up.stride + i, left);
        store_some(out + r * width + i, gated<T>(a, b, activation), left);
      }
    }
  });
}

// gate, up: the same type, [1, …, rows, width], values of a row contiguous. kind: 0 SiLU, 1 GELU by tanh, 2 GELU.
Tensor gated_activation_of(const Tensor gate, const Tensor up, int64_t kind) {
  Tensor out = torch::stable::new_empty(gate, shape(gate));
  if (out.numel() == 0) return out;
  gated_activation(type_of(gate), {gate.data_ptr(), gate.stride(-2)}, {up.data_ptr(), up.stride(-2)}, out.size(-2),
                   out.size(-1), kind, out.data_ptr());
  return out;
}

}  // namespace

void gridwork::gated_activation(Type type, const Rows& gate, const Rows& up, int64_t count, int64_t width, int64_t kind,
                                void* out) {
  by_type(type, [&]<typename T>(T*) {
    by_activation(kind, [&](const auto& activation) {
      over_rows(gate, up, count, width, static_cast<T*>(out), activation);
    });
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def("gated_activation(Tensor gate, Tensor up, int kind) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) { m.impl("gated_activation", TORCH_BOX(&gated_activation_of)); }
