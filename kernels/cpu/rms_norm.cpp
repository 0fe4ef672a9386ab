// Root-mean-square normalisation (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization") in one pass over each
// row, alone or of a sum that is wanted too, rounded where the plain forms in PyTorch round.

#include <algorithm>
#include <cmath>
#include <tuple>

#include "simd.h"
#include "tensors.h"
#include "thread_pool.h"

namespace {

using namespace gridwork;

// Values that are worth sharing out over threads.
constexpr int64_t kChunkValues = 16384;

// x, out: [width], weight: [width].
//   plus_one: out = x / rms * (1 + weight), rounded once; else x / rms is rounded before it is multiplied by weight.
template <typename T>
void row(const T* x, const T* weight, T* out, int64_t width, float eps, bool plus_one) {
  Vec even = zero(), odd = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    const Vec v = load(x + i), u = load(x + i + kLanes);
    even = fma(v, v, even);
    odd = fma(u, u, odd);
  }
  for (; i < width; i += kLanes) {
    const Vec v = load_some(x + i, width - i);
    even = fma(v, v, even);
  }
  const float mean = reduce_add(add(even, odd)) / static_cast<float>(width);
  const Vec scale = set1(1.0f / std::sqrt(mean + eps)), one = set1(1.0f);
  for (i = 0; i < width; i += kLanes) {
    const Vec v = mul(load_some(x + i, width - i), scale), w = load_some(weight + i, width - i);
    store_some(out + i, plus_one ? mul(v, add(one, w)) : mul(w, rounded(v, x)), width - i);
  }
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
    for (int64_t r = first; r < last; ++r) body(r * width);
  });
}

// x: [..., width]; weight: the same type, [width]. Returns the shape and type of x.
Tensor rms_norm(const Tensor x, const Tensor weight, double eps, bool plus_one) {
  const Tensor values = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(values, shape(values));
  if (values.numel() == 0) return out;
  const int64_t width = weight.size(0);
  by_type(values, [&]<typename T>(T*) {
    const T *from = data<T>(values), *w = data<T>(weight);
    T* to = mutable_data<T>(out);
    over_rows(values.numel() / width, width, [&](int64_t at) {
      row(from + at, w, to + at, width, static_cast<float>(eps), plus_one);
    });
  });
  return out;
}

// x + residual, rounded, and its norm. x, residual: the same shape and type.
std::tuple<Tensor, Tensor> add_rms_norm(const Tensor x, const Tensor residual, const Tensor weight, double eps,
                                        bool plus_one) {
  const Tensor a = torch::stable::contiguous(x), b = torch::stable::contiguous(residual);
  Tensor total = torch::stable::new_empty(a, shape(a)), out = torch::stable::new_empty(a, shape(a));
  if (a.numel() == 0) return {total, out};
  const int64_t width = weight.size(0);
  by_type(a, [&]<typename T>(T*) {
    const T *ap = data<T>(a), *bp = data<T>(b), *w = data<T>(weight);
    T *tp = mutable_data<T>(total), *op = mutable_data<T>(out);
    over_rows(a.numel() / width, width, [&](int64_t at) {
      sum(ap + at, bp + at, tp + at, width);
      row(tp + at, w, op + at, width, static_cast<float>(eps), plus_one);
    });
  });
  return {total, out};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps, bool plus_one) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, bool plus_one) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
}
