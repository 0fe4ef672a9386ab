// Linear layers with 8-bit and 4-bit weights; inputs are quantized to 8 bits, each group of 32 values by its largest.
//
// Sums of 8-bit products are whole numbers, and exact; groups are added in their order: a row's result does not depend
// on the other rows, nor on the instruction set.
//
// int8: one scale for each output feature, weight = scale * q, q in [-127, 127].
//   packed: [ceil(N / W), K / 4, W, 4] int8: panels of W = 2 * kLanes features, four consecutive k of a feature
//     together.
// int4: a scale and an offset for each feature and group of 32 k, weight = scale * q + offset, q in [0, 15].
//   packed: [ceil(N / W), K / 8, W, 4] uint8: lower halves are k = 0..3 of eight, upper ones k = 4..7.
//   scales: [ceil(N / W), K / 32, 2, W] float16: scales, then offsets.

#include <algorithm>
#include <cmath>
#include <optional>

#include "scratch.h"
#include "simd.h"
#include "simd_int.h"
#include "tensors.h"
#include "thread_pool.h"

namespace {

using namespace gridwork;

constexpr int64_t kPanel = 2 * kLanes;
constexpr int64_t kGroup = 32;
// Rows of one panel that are summed at once.
constexpr int kRows = kLanes == 16 ? 8 : 4;

// Rows of x in 8 bits.
struct Quantized {
  const int8_t* values;  // [rows, K]
  const float* scales;   // [rows, K / kGroup]
  const float* sums;     // [rows, K / kGroup]: of each group's values, times its scale
  int64_t K;
};

template <typename T>
void quantize_group(const T* x, int8_t* values, float* scale, float* sum) {
  Vec most = zero(), total = zero();
  for (int64_t k = 0; k < kGroup; k += kLanes) {
    const Vec v = load(x + k);
    most = max(most, max(v, sub(zero(), v)));
    total = add(total, mul(v, zero()));  // not zero when a value is infinite or no number
  }
  const float odd = reduce_add(total);
  const float largest = odd == 0.0f ? reduce_max(most) : 0.0f;
  // Values that are no numbers cannot be expressed in 8 bits: all results of the row become what they are.
  *scale = largest / 127.0f + odd;
  const Vec inverse = set1(largest > 0 ? 127.0f / largest : 0.0f);
  Vec all = zero();
  for (int64_t k = 0; k < kGroup; k += kLanes) {
    const Vec v = odd == 0.0f ? round(mul(load(x + k), inverse)) : zero();
    all = add(all, v);
    store_int8(values + k, v);
  }
  *sum = reduce_add(all) * *scale;
}

template <typename T>
Quantized quantize(const T* x, int64_t rows, int64_t K) {
  thread_local Scratch scratch;
  const int64_t groups = K / kGroup, value_floats = (rows * K + 63) / 64 * 16;
  float* memory = scratch.floats(static_cast<size_t>(value_floats + 2 * rows * groups));
  auto* values = reinterpret_cast<int8_t*>(memory);
  float* scales = memory + value_floats;
  float* sums = scales + rows * groups;
  const auto body = [=](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) quantize_group(x + g * kGroup, values + g * kGroup, scales + g, sums + g);
  };
  if (rows * K < 16384) body(0, rows * groups);
  else parallel_for(rows * groups, 256, body);
  return {values, scales, sums, K};
}

GRIDWORK_INLINE IntVec four(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return set_int(bits);
}

// A tile's results so far, in float32, by row and half of the panel.
template <int ROWS>
using Sums = Vec[ROWS][2];

// x_scales, x_sums: of the rows' groups, row stride K / kGroup.
template <int ROWS>
void int8_tile(const int8_t* x, int64_t K, const float* x_scales, const int8_t* w, Sums<ROWS>& out) {
  for (int r = 0; r < ROWS; ++r) out[r][0] = out[r][1] = zero();
  const int64_t groups = K / kGroup;
  for (int64_t group = 0; group < groups; ++group) {
    IntVec sum[ROWS][2];
    for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = int_zero();
    for (int64_t k = group * kGroup; k < (group + 1) * kGroup; k += 4) {
      const IntVec a = load_int(w + k * kPanel), b = load_int(w + k * kPanel + 4 * kLanes);
      const IntVec size_a = magnitude(a), size_b = magnitude(b);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const IntVec v = four(x + r * K + k);
        sum[r][0] = add_products(size_a, with_sign(v, a), sum[r][0]);
        sum[r][1] = add_products(size_b, with_sign(v, b), sum[r][1]);
      }
    }
    for (int r = 0; r < ROWS; ++r) {
      const Vec scale = set1(x_scales[r * groups + group]);
      out[r][0] = fma(to_float(sum[r][0]), scale, out[r][0]);
      out[r][1] = fma(to_float(sum[r][1]), scale, out[r][1]);
    }
  }
}

// scales: of the panel, [K / kGroup, 2, kPanel].
template <int ROWS>
void int4_tile(const int8_t* x, int64_t K, const float* x_scales, const float* x_sums, const uint8_t* w,
               const f16* scales, Sums<ROWS>& out) {
  for (int r = 0; r < ROWS; ++r) out[r][0] = out[r][1] = zero();
  const int64_t groups = K / kGroup;
  for (int64_t group = 0; group < groups; ++group) {
    // Eight sums of two products of at most 15 * 127 fit into 16 bits.
    IntVec sum[ROWS][2];
    for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = int_zero();
#pragma GCC unroll 4
    for (int64_t k = group * kGroup; k < (group + 1) * kGroup; k += 8) {
      const uint8_t* at = w + k / 2 * kPanel;
      const IntVec a = load_int(at), b = load_int(at + 4 * kLanes);
      const IntVec low_a = low_nibbles(a), high_a = high_nibbles(a), low_b = low_nibbles(b), high_b = high_nibbles(b);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const IntVec first = four(x + r * K + k), second = four(x + r * K + k + 4);
        sum[r][0] = add_few(high_a, second, add_few(low_a, first, sum[r][0]));
        sum[r][1] = add_few(high_b, second, add_few(low_b, first, sum[r][1]));
      }
    }
    const f16* scale = scales + group * 2 * kPanel;
    const Vec scale_a = load(scale), scale_b = load(scale + kLanes);
    const Vec offset_a = load(scale + kPanel), offset_b = load(scale + kPanel + kLanes);
    for (int r = 0; r < ROWS; ++r) {
      const Vec own = set1(x_scales[r * groups + group]), whole = set1(x_sums[r * groups + group]);
      out[r][0] = fma(to_float(total(sum[r][0])), mul(own, scale_a), fma(whole, offset_a, out[r][0]));
      out[r][1] = fma(to_float(total(sum[r][1])), mul(own, scale_b), fma(whole, offset_b, out[r][1]));
    }
  }
}

template <typename Out>
struct Product {
  Quantized x;
  const void* packed;
  const void* scales;  // int8: float32 [panels * kPanel]; int4: float16, see above
  const float* bias;
  Out* out;  // [rows, N]
  int64_t rows, N;
  bool four_bits;

  template <int ROWS>
  void tile(int64_t row, int64_t panel) const {
    Sums<ROWS> sums;
    const int64_t K = x.K, feature = panel * kPanel, left = N - feature;
    const int8_t* values = x.values + row * K;
    const float* x_scales = x.scales + row * (K / kGroup);
    if (four_bits) {
      int4_tile<ROWS>(values, K, x_scales, x.sums + row * (K / kGroup),
                      static_cast<const uint8_t*>(packed) + panel * K / 2 * kPanel,
                      static_cast<const f16*>(scales) + panel * (K / kGroup) * 2 * kPanel, sums);
    } else {
      int8_tile<ROWS>(values, K, x_scales, static_cast<const int8_t*>(packed) + panel * K * kPanel, sums);
    }
    for (int r = 0; r < ROWS; ++r) {
      for (int half = 0; half < 2; ++half) {
        const int64_t first = half * kLanes, some = left - first;
        if (some <= 0) break;
        Vec v = sums[r][half];
        if (!four_bits) v = mul(v, load(static_cast<const float*>(scales) + feature + first));
        if (bias != nullptr) v = add(v, load_some(bias + feature + first, some));
        store_some(out + (row + r) * N + feature + first, v, some);
      }
    }
  }

  template <int ROWS>
  void tile_of(int64_t count, int64_t row, int64_t panel) const {
    if (count == ROWS) return tile<ROWS>(row, panel);
    if constexpr (ROWS > 1) tile_of<ROWS - 1>(count, row, panel);
  }

  void panels(int64_t begin, int64_t end) const {
    // Rows whose values stay in the L2 cache go through all panels together.
    constexpr int64_t kBlock = 64;
    for (int64_t first = 0; first < rows; first += kBlock) {
      const int64_t last = std::min(rows, first + kBlock);
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t r = first; r < last; r += kRows) tile_of<kRows>(std::min<int64_t>(kRows, last - r), r, panel);
      }
    }
  }
};

Tensor run(const Tensor& x, const Tensor& packed, const Tensor& scales, const std::optional<Tensor>& bias,
           int64_t out_features, bool float32_out, bool four_bits) {
  const Tensor rows = torch::stable::contiguous(x);
  auto out_shape = shape(rows);
  const int64_t K = out_shape.back();
  out_shape.back() = out_features;
  Tensor out = torch::stable::new_empty(rows, out_shape, float32_out ? ScalarType::Float : rows.scalar_type());
  const int64_t M = rows.numel() / K;
  if (M == 0) return out;
  const QuantizedWeights weights{four_bits,      packed.data_ptr(), scales.data_ptr(),
                                 packed.size(0), out_features,      bias.has_value() ? data<float>(*bias) : nullptr};
  quantized_linear(type_of(rows), rows.data_ptr(), M, K, weights, out.data_ptr(), float32_out);
  return out;
}

// x: [..., K].  packed, scales: see above; int8's scales float32 [ceil(N / W) * W].  bias: float32 [N].  Returns [...,
// N] in x's type, or in float32.
Tensor int8_linear(const Tensor x, const Tensor packed, const Tensor scales, std::optional<Tensor> bias,
                   int64_t out_features, bool float32_out) {
  return run(x, packed, scales, bias, out_features, float32_out, false);
}

Tensor int4_linear(const Tensor x, const Tensor packed, const Tensor scales, std::optional<Tensor> bias,
                   int64_t out_features, bool float32_out) {
  return run(x, packed, scales, bias, out_features, float32_out, true);
}

}  // namespace

void gridwork::quantized_linear(Type type, const void* x, int64_t rows, int64_t K, const QuantizedWeights& weights,
                                void* out, bool float32_out) {
  by_type(type, [&]<typename X>(X*) {
    const Quantized quantized = quantize(static_cast<const X*>(x), rows, K);
    by_type(float32_out ? Type::float32 : type, [&]<typename Out>(Out*) {
      const Product<Out> product{quantized, weights.values, weights.scales, weights.bias, static_cast<Out*>(out), rows,
                                 weights.features, weights.four_bits};
      const int64_t chunk = std::max<int64_t>(1, weights.num_panels / (num_threads() * 8));
      parallel_for(weights.num_panels, chunk, [&](int64_t begin, int64_t end) { product.panels(begin, end); });
    });
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def(
      "int8_linear(Tensor x, Tensor packed, Tensor scales, Tensor? bias, int out_features, bool float32_out) -> Tensor");
  m.def(
      "int4_linear(Tensor x, Tensor packed, Tensor scales, Tensor? bias, int out_features, bool float32_out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("int4_linear", TORCH_BOX(&int4_linear));
}
