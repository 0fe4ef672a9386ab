// Linear layer with bfloat16 weights for x86-64 CPUs with AVX-512.
//
// Without tile units a bfloat16 product is fastest in float32: a bfloat16 is the upper half of the float32 of the same value,
// so a weight is widened by one shift or mask when it is used, and memory is read at bfloat16's size.
//
// Packed weights: [ceil(N / 32), K, 32] bfloat16, panels of 32 output features. Within the 32, lane j of the 32-bit
// lanes holds feature j in its lower and feature j + 16 in its upper half; features beyond N are zero.
//
// Every output element is one chain of fused multiply-adds over k = 0 .. K-1 in float32, whatever the number of rows:
// a row's result does not depend on the other rows of the batch.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "avx512.h"
#include "thread_pool.h"

namespace {

using torch::stable::Tensor;
using gridwork::bf16;
using gridwork::load16;
using gridwork::narrow;

constexpr int64_t kPanel = 32;
// Rows whose float32 copies a thread holds at once: with K = 4096 they fill 1 MiB, about a core's L2 cache.
constexpr int64_t kRowBlock = 64;

AVX512 inline __m512 widen_low(__m512i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
AVX512 inline __m512 widen_high(__m512i v) {
  return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline float widen_one(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

AVX512 inline void store_masked(bf16* out, __mmask16 mask, __m512 v) { _mm256_mask_storeu_epi16(out, mask, narrow(v)); }
AVX512 inline void store_masked(float* out, __mmask16 mask, __m512 v) { _mm512_mask_storeu_ps(out, mask, v); }

// Writes `count` of 16 features of one row.
template <typename Out>
AVX512 inline void store(Out* out, __m512 sum, const bf16* bias, int64_t count) {
  if (count <= 0) return;
  const __mmask16 mask = count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
  if (bias != nullptr) {
    const __m256i b = _mm256_maskz_loadu_epi16(mask, bias);
    sum = _mm512_add_ps(sum, gridwork::widen(b));
  }
  store_masked(out, mask, sum);
}

// ROWS rows of x times PANELS consecutive panels of weights.
//   x: float32, row stride K.  w: first panel.  out: row stride N, at the first panel's first feature.
template <int ROWS, int PANELS, typename Out>
AVX512 void tile(const float* x, const bf16* w, const bf16* bias, Out* out, int64_t K, int64_t N, int64_t features) {
  __m512 low[ROWS][PANELS], high[ROWS][PANELS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) low[r][p] = high[r][p] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < K; ++k) {
    __m512 wl[PANELS], wh[PANELS];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) {
      const __m512i v = _mm512_loadu_si512(w + (p * K + k) * kPanel);
      wl[p] = widen_low(v);
      wh[p] = widen_high(v);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const __m512 xr = _mm512_set1_ps(x[r * K + k]);
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) {
        low[r][p] = _mm512_fmadd_ps(xr, wl[p], low[r][p]);
        high[r][p] = _mm512_fmadd_ps(xr, wh[p], high[r][p]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) {
      const int64_t first = p * kPanel;
      const bf16* b = bias == nullptr ? nullptr : bias + first;
      store(out + r * N + first, low[r][p], b, features - first);
      store(out + r * N + first + 16, high[r][p], b == nullptr ? nullptr : b + 16, features - first - 16);
    }
  }
}

template <int PANELS, typename Out>
AVX512 void tiles(const float* x, int64_t rows, const bf16* w, const bf16* bias, Out* out, int64_t K, int64_t N,
                  int64_t features) {
  // Few rows: several panels at once, so that enough independent sums hide the latency of the multiply-add.
  constexpr int kMost = PANELS == 4 ? 3 : PANELS == 2 ? 6 : 12;
  while (rows > 0) {
    const int n = static_cast<int>(std::min<int64_t>(rows, kMost));
    switch (n) {
      case 1: tile<1, PANELS>(x, w, bias, out, K, N, features); break;
      case 2: tile<2, PANELS>(x, w, bias, out, K, N, features); break;
      case 3: tile<3, PANELS>(x, w, bias, out, K, N, features); break;
      default:
        if constexpr (PANELS <= 2) {
          switch (n) {
            case 4: tile<4, PANELS>(x, w, bias, out, K, N, features); break;
            case 5: tile<5, PANELS>(x, w, bias, out, K, N, features); break;
            case 6: tile<6, PANELS>(x, w, bias, out, K, N, features); break;
            default:
              if constexpr (PANELS == 1) {
                switch (n) {
                  case 7: tile<7, 1>(x, w, bias, out, K, N, features); break;
                  case 8: tile<8, 1>(x, w, bias, out, K, N, features); break;
                  case 9: tile<9, 1>(x, w, bias, out, K, N, features); break;
                  case 10: tile<10, 1>(x, w, bias, out, K, N, features); break;
                  case 11: tile<11, 1>(x, w, bias, out, K, N, features); break;
                  default: tile<12, 1>(x, w, bias, out, K, N, features); break;
                }
              }
          }
        }
    }
    x += n * K;
    out += n * N;
    rows -= n;
  }
}

AVX512 void widen_row(const bf16* in, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    _mm512_storeu_ps(out + i, load16(in + i));
  }
  for (; i < count; ++i) out[i] = widen_one(in[i]);
}

// Panels [begin, end) of the product of all rows.
template <typename Out>
AVX512 void panels(const bf16* x, int64_t rows, const bf16* packed, const bf16* bias, Out* out,
                   int64_t K, int64_t N, int64_t begin, int64_t end) {
  thread_local std::vector<float> wide;
  wide.resize(static_cast<size_t>(std::min(rows, kRowBlock) * K));
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    const int64_t count = std::min(kRowBlock, rows - first);
    for (int64_t r = 0; r < count; ++r) widen_row(x + (first + r) * K, wide.data() + r * K, K);
    for (int64_t panel = begin; panel < end;) {
      const int64_t left = end - panel;
      const int step = count <= 3 && left >= 4 ? 4 : count <= 6 && left >= 2 ? 2 : 1;
      const bf16* w = packed + panel * K * kPanel;
      const int64_t feature = panel * kPanel;
      const bf16* b = bias == nullptr ? nullptr : bias + feature;
      Out* o = out + first * N + feature;
      if (step == 4) tiles<4>(wide.data(), count, w, b, o, K, N, N - feature);
      else if (step == 2) tiles<2>(wide.data(), count, w, b, o, K, N, N - feature);
      else tiles<1>(wide.data(), count, w, b, o, K, N, N - feature);
      panel += step;
    }
  }
}

// x: bfloat16 [..., K].  packed: see above.  bias: bfloat16 [N].  Returns [..., N], bfloat16 or, not rounded, float32.
Tensor linear(const Tensor x, const Tensor packed, std::optional<Tensor> bias, int64_t out_features, bool float32_out) {
  const int64_t K = packed.size(1);
  const Tensor rows = torch::stable::contiguous(x);
  std::vector<int64_t> shape(rows.sizes().begin(), rows.sizes().end());
  shape.back() = out_features;
  const auto dtype = float32_out ? torch::headeronly::ScalarType::Float : torch::headeronly::ScalarType::BFloat16;
  Tensor out = torch::stable::new_empty(rows, shape, dtype);
  const int64_t M = K == 0 ? 0 : rows.numel() / K;
  const auto* xp = static_cast<const bf16*>(rows.data_ptr());
  const auto* wp = static_cast<const bf16*>(packed.data_ptr());
  const auto* bp = bias.has_value() ? static_cast<const bf16*>(bias->data_ptr()) : nullptr;
  void* op = out.data_ptr();
  const int64_t num_panels = packed.size(0);
  // At least four panels at a time: they are computed together when there is one row.
  const int64_t chunk = std::max<int64_t>(4, num_panels / (gridwork::num_threads() * 8));
  gridwork::parallel_for(num_panels, chunk, [&](int64_t begin, int64_t end) {
    if (float32_out) panels(xp, M, wp, bp, static_cast<float*>(op), K, out_features, begin, end);
    else panels(xp, M, wp, bp, static_cast<bf16*>(op), K, out_features, begin, end);
  });
  return out;
}

// weight: bfloat16 [N, K], contiguous.  Returns the packed form.
Tensor pack(const Tensor weight) {
  const int64_t N = weight.size(0), K = weight.size(1), num_panels = (N + kPanel - 1) / kPanel;
  Tensor packed = torch::stable::new_empty(weight, {num_panels, K, kPanel});
  const auto* in = static_cast<const bf16*>(weight.data_ptr());
  auto* out = static_cast<bf16*>(packed.data_ptr());
  gridwork::parallel_for(num_panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t lane = 0; lane < kPanel; ++lane) {
        // Place of feature `lane` among the 32: even places are lower halves, odd ones upper halves.
        const int64_t place = lane < 16 ? 2 * lane : 2 * (lane - 16) + 1;
        const int64_t feature = panel * kPanel + lane;
        bf16* to = out + panel * K * kPanel + place;
        if (feature < N) {
          for (int64_t k = 0; k < K; ++k) to[k * kPanel] = in[feature * K + k];
        } else {
          for (int64_t k = 0; k < K; ++k) to[k * kPanel] = 0;
        }
      }
    }
  });
  return packed;
}

}  // namespace

STABLE_TORCH_LIBRARY(gridwork_cpu, m) {
  m.def("bf16_linear(Tensor x, Tensor packed, Tensor? bias, int out_features, bool float32_out) -> Tensor");
  m.def("bf16_linear_pack(Tensor weight) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("bf16_linear", TORCH_BOX(&linear));
  m.impl("bf16_linear_pack", TORCH_BOX(&pack));
}
