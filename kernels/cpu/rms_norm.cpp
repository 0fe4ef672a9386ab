// Root-mean-square normalisation (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization") in one pass over
// each row, alone or of a sum that is wanted too, rounded where the plain forms in PyTorch round.

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
    for (int64_t r = first; r < last; ++r) body(r);
  });
}

// x: [..., width]; weight: the same type, [width]. Returns the shape and type of x.
Tensor rms_norm_of(const Tensor x, const Tensor weight, double eps, bool plus_one) {
  const Tensor values = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(values, shape(values));
  const int64_t width = weight.size(0);
  const Norm norm{weight.data_ptr(), width, static_cast<float>(eps), plus_one};
  rms_norm(type_of(values), {values.data_ptr(), width}, values.numel() / width, 1, norm, out.data_ptr());
  return out;
}

// x + residual, rounded, and its norm. x, residual: the same shape and type.
std::tuple<Tensor, Tensor> add_rms_norm_of(const Tensor x, const Tensor residual, const Tensor weight, double eps,
                                           bool plus_one) {
  const Tensor a = torch::stable::contiguous(x), b = torch::stable::contiguous(residual);
  Tensor total = torch::stable::new_empty(a, shape(a)), out = torch::stable::new_empty(a, shape(a));
  const int64_t width = weight.size(0);
  const Norm norm{weight.data_ptr(), width, static_cast<float>(eps), plus_one};
  add_rms_norm(type_of(a), {a.data_ptr(), width}, {b.data_ptr(), width}, a.numel() / width, norm, total.data_ptr(),
               out.data_ptr());
  return {total, out};
}

}  // namespace

void gridwork::rms_norm(Type type, const Rows& x, int64_t count, int64_t parts, const Norm& norm, void* out) {
  by_type(type, [&]<typename T>(T*) {
    const T *from = static_cast<const T*>(x.data), *weight = static_cast<const T*>(norm.weight);
    T* to = static_cast<T*>(out);
    over_rows(count, parts * norm.width, [&](int64_t r) {
      for (int64_t i = 0; i < parts; ++i) {
        row(from + r * x.stride + i * norm.width, weight, to + (r * parts + i) * norm.width, norm.width, norm.eps,
            norm.plus_one);
      }
    });
  });
}

void gridwork::add_rms_norm(Type type, const Rows& a, const Rows& b, int64_t count, const Norm& norm, void* total,
                            void* out) {
  by_type(type, [&]<typename T>(T*) {
    const T *ap = static_cast<const T*>(a.data), *bp = static_cast<const T*>(b.data);
    T *totals = static_cast<T*>(total), *to = static_cast<T*>(out);
    over_rows(count, norm.width, [&](int64_t r) {
      T* both = totals + r * norm.width;
      sum(ap + r * a.stride, bp + r * b.stride, both, norm.width);
      row(both, static_cast<const T*>(norm.weight), to + r * norm.width, norm.width, norm.eps, norm.plus_one);
    });
  });
}

void gridwork::add(Type type, const Rows& a, const Rows& b, int64_t count, int64_t width, void* out) {
  by_type(type, [&]<typename T>(T*) {
    const T *ap = static_cast<const T*>(a.data), *bp = static_cast<const T*>(b.data);
    over_rows(count, width, [&](int64_t r) {
      sum(ap + r * a.stride, bp + r * b.stride, static_cast<T*>(out) + r * width, width);
    });
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps, bool plus_one) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, bool plus_one) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm_of));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm_of));
}
