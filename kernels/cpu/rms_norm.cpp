// Root-mean-square normalisation (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization") in one pass over each
// row, rounded where the plain form in PyTorch rounds.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "avx512.h"
#include "thread_pool.h"

namespace {

using gridwork::bf16;
using gridwork::load16;
using gridwork::store16;
using torch::stable::Tensor;

// Values that are worth sharing out over threads.
constexpr int64_t kChunkValues = 16384;

AVX512 inline __m512 rounded(__m512 v, const bf16*) { return gridwork::widen(gridwork::narrow(v)); }
AVX512 inline __m512 rounded(__m512 v, const float*) { return v; }

// x, out: [width], weight: [width]; width is a multiple of 16.
//   plus_one: out = x / rms * (1 + weight), rounded once; else x / rms is rounded before it is multiplied by weight.
template <typename T>
AVX512 void row(const T* x, const T* weight, T* out, int64_t width, float eps, bool plus_one) {
  __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 32) {
    const __m512 v = load16(x + i);
    even = _mm512_fmadd_ps(v, v, even);
    if (i + 16 == width) break;
    const __m512 u = load16(x + i + 16);
    odd = _mm512_fmadd_ps(u, u, odd);
  }
  const float mean = _mm512_reduce_add_ps(_mm512_add_ps(even, odd)) / static_cast<float>(width);
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(mean + eps));
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < width; i += 16) {
    const __m512 v = _mm512_mul_ps(load16(x + i), scale), w = load16(weight + i);
    store16(out + i, plus_one ? _mm512_mul_ps(v, _mm512_add_ps(one, w)) : _mm512_mul_ps(w, rounded(v, x)));
  }
}

template <typename T>
void rows(const Tensor& x, const Tensor& weight, Tensor& out, float eps, bool plus_one) {
  const int64_t width = weight.size(0), count = x.numel() / width;
  const auto* xp = static_cast<const T*>(x.data_ptr());
  const auto* wp = static_cast<const T*>(weight.data_ptr());
  auto* op = static_cast<T*>(out.data_ptr());
  gridwork::parallel_for(count, std::max<int64_t>(1, kChunkValues / width), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) row(xp + r * width, wp, op + r * width, width, eps, plus_one);
  });
}

// x: float32 or bfloat16 [..., width]; weight: the same type, [width]. Returns the shape and type of x.
Tensor rms_norm(const Tensor x, const Tensor weight, double eps, bool plus_one) {
  const Tensor values = torch::stable::contiguous(x);
  std::vector<int64_t> shape(values.sizes().begin(), values.sizes().end());
  Tensor out = torch::stable::new_empty(values, shape);
  if (values.numel() == 0) return out;
  if (values.scalar_type() == torch::headeronly::ScalarType::BFloat16) {
    rows<bf16>(values, weight, out, static_cast<float>(eps), plus_one);
  } else {
    rows<float>(values, weight, out, static_cast<float>(eps), plus_one);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps, bool plus_one) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) { m.impl("rms_norm", TORCH_BOX(&rms_norm)); }
