// Linear layers with 8-bit and 4-bit weights. Inputs are quantized to 8 bits, each group of 32 values by its largest
// magnitude.
//
// Sums of 8-bit products are exact whole numbers, and groups are added in order: a row's result does not depend on the
// other rows, nor on the instruction set.
//
// int8: one scale for each output feature, weight = scale * q, q in [-127, 127].
//   packed: [ceil(N / W), K / 4, W, 4] int8: panels of W = 2 * kLanes features, four consecutive k of a feature
//     together.
// int4: a scale and an offset for each feature and group of 32 k, weight = scale * q + offset, q in [0, 15].
//   packed: [ceil(N / W), K / 8, W, 4] uint8: lower halves are k = 0..3 of eight, upper halves k = 4..7.
//   scales: [ceil(N / W), K / 32, 2, W] float16: scales, then offsets.

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "common/scratch.h"
#include "common/simd.h"
#include "common/simd_int.h"
#include "common/tensors.h"
#include "common/thread_pool.h"
#include "common/work_split.h"

namespace {

using namespace gridwork;

constexpr int64_t kPanel = 2 * kLanes;
constexpr int64_t kGroup = 32;
// Maximum number of rows of a tile.
constexpr int kRows = kLanes == 16 ? 8 : 4;
// Panels that one row is multiplied by at once: with few sums, a core waits for each product, and for memory.
constexpr int kPanels = kLanes == 16 ? 4 : 2;
constexpr int max_panels(int rows) { return std::max(1, kPanels / rows); }
// Prefetch distance, in bytes of weights.
constexpr int64_t kAhead = 1024;

// Rows of x, quantized to 8 bits.
struct Quantized {
  const int8_t* values;  // [rows, K]
  const float* scales;   // [rows, K / kGroup]
  const float* sums;     // [rows, K / kGroup]: the sum of each group's values
  int64_t K;

  Quantized from(int64_t row) const {
    return {values + row * K, scales + row * (K / kGroup), sums + row * (K / kGroup), K};
  }
};

template <typename T>
void quantize_group(const T* x, int8_t* values, float* scale, float* sum) {
  Vec most = zero(), total = zero();
  for (int64_t k = 0; k < kGroup; k += kLanes) {
    const Vec v = load(x + k);
    most = max(most, max(v, sub(zero(), v)));
    total = add(total, mul(v, zero()));  // not zero when a value is infinite or NaN
  }
  const float odd = reduce_add(total);
  const float largest = odd == 0.0f ? reduce_max(most) : 0.0f;
  // NaN and infinity do not exist in 8 bits. The scale takes their value, which makes all results of the row NaN.
  *scale = largest / 127.0f + odd;
  const Vec inverse = set1(largest > 0 ? 127.0f / largest : 0.0f);
  Vec all = zero();
  for (int64_t k = 0; k < kGroup; k += kLanes) {
    const Vec v = odd == 0.0f ? round(mul(load(x + k), inverse)) : zero();
    all = add(all, v);
    store_int8(values + k, v);
  }
  *sum = reduce_add(all);
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

// Operands of a tile: ROWS rows and PANELS consecutive panels.
struct Operands {
  const int8_t* x;       // [ROWS, K]
  const float* x_scales; // [ROWS, K / kGroup]
  const float* x_sums;   // [ROWS, K / kGroup]
  const uint8_t* packed; // of the first panel
  const f16* scales;     // int4: of the first panel, [PANELS, K / kGroup, 2, kPanel]
  int64_t K, panel_bytes;

  // Weights of a panel, `offset` bytes after its beginning.  Prefetches weights that are needed soon: the next panels
  // begin after the end of these.
  template <int PANELS>
  GRIDWORK_INLINE const uint8_t* weights(int panel, int64_t offset) const {
    const int64_t behind = offset + kAhead < panel_bytes ? 0 : (PANELS - 1) * panel_bytes;
    const uint8_t* at = packed + panel * panel_bytes + offset;
    _mm_prefetch(reinterpret_cast<const char*>(at + kAhead + behind), _MM_HINT_T0);
    return at;
  }
};

// A tile's sums in float32, by row and half panel.
template <int ROWS, int PANELS>
using Sums = Vec[ROWS][2 * PANELS];

template <int ROWS, int PANELS>
void int8_tile(const Operands& of, Sums<ROWS, PANELS>& out) {
  constexpr int kVecs = 2 * PANELS;
  const int64_t K = of.K, groups = K / kGroup;
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { out[r][v] = zero(); });
  });
  for (int64_t group = 0; group < groups; ++group) {
    IntVec sum[ROWS][kVecs];
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      const IntVec begin = of_inputs(of.x_sums[r * groups + group]);
      unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { sum[r][v] = begin; });
    });
#pragma GCC unroll 1
    for (int64_t k = group * kGroup; k < (group + 1) * kGroup; k += 4) {
      unroll<PANELS>([&](auto p) GRIDWORK_INLINE_LAMBDA {
        const auto a = signed_weights(load_int(of.weights<PANELS>(p, k * kPanel)));
        const auto b = signed_weights(load_int(of.weights<PANELS>(p, k * kPanel + 4 * kLanes)));
        unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
          const IntVec x = four(of.x + r * K + k);
          sum[r][2 * p] = add_signed(a, x, sum[r][2 * p]);
          sum[r][2 * p + 1] = add_signed(b, x, sum[r][2 * p + 1]);
        });
      });
    }
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      const Vec scale = set1(of.x_scales[r * groups + group]);
      unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { out[r][v] = fma(to_float(sum[r][v]), scale, out[r][v]); });
    });
  }
}

template <int ROWS, int PANELS>
void int4_tile(const Operands& of, Sums<ROWS, PANELS>& out) {
  constexpr int kVecs = 2 * PANELS;
  const int64_t K = of.K, groups = K / kGroup;
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { out[r][v] = zero(); });
  });
  for (int64_t group = 0; group < groups; ++group) {
    // Eight sums of two products of at most 15 * 127 fit into 16 bits.
    IntVec sum[ROWS][kVecs];
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { sum[r][v] = int_zero(); });
    });
#pragma GCC unroll 1
    for (int64_t k = group * kGroup; k < (group + 1) * kGroup; k += 8) {
      unroll<PANELS>([&](auto p) GRIDWORK_INLINE_LAMBDA {
        const IntVec a = load_int(of.weights<PANELS>(p, k / 2 * kPanel));
        const IntVec b = load_int(of.weights<PANELS>(p, k / 2 * kPanel + 4 * kLanes));
        const IntVec low_a = low_nibbles(a), high_a = high_nibbles(a), low_b = low_nibbles(b), high_b = high_nibbles(b);
        unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
          const IntVec first = four(of.x + r * K + k), second = four(of.x + r * K + k + 4);
          sum[r][2 * p] = add_few(high_a, second, add_few(low_a, first, sum[r][2 * p]));
          sum[r][2 * p + 1] = add_few(high_b, second, add_few(low_b, first, sum[r][2 * p + 1]));
        });
      });
    }
    Vec own[ROWS], whole[ROWS];
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      const float scale = of.x_scales[r * groups + group];
      own[r] = set1(scale), whole[r] = set1(of.x_sums[r * groups + group] * scale);
    });
    unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      const f16* at = of.scales + (v / 2 * groups + group) * 2 * kPanel + v % 2 * kLanes;
      const Vec scale = load(at), offset = load(at + kPanel);
      unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
        out[r][v] = fma(to_float(total(sum[r][v])), mul(own[r], scale), fma(whole[r], offset, out[r][v]));
      });
    });
  }
}

// Bytes of a panel's weights, and the number of its scales.
int64_t panel_bytes_of(bool four_bits, int64_t K) { return (four_bits ? K / 2 : K) * kPanel; }
int64_t panel_scales_of(bool four_bits, int64_t K) { return four_bits ? K / kGroup * 2 * kPanel : kPanel; }

template <typename Out>
struct Product {
  Quantized x;
  const void* packed;
  const void* scales;  // int8: float32 [panels * kPanel]; int4: float16, see above
  const float* bias;
  Out* out;  // [rows, N]
  int64_t rows, N;
  bool four_bits;

  template <int ROWS, int PANELS>
  void tile(int64_t row, int64_t panel) const {
    Sums<ROWS, PANELS> sums;
    const int64_t K = x.K, panel_bytes = panel_bytes_of(four_bits, K);
    const Quantized rows_of_tile = x.from(row);
    const Operands of{rows_of_tile.values,
                      rows_of_tile.scales,
                      rows_of_tile.sums,
                      static_cast<const uint8_t*>(packed) + panel * panel_bytes,
                      four_bits ? static_cast<const f16*>(scales) + panel * panel_scales_of(four_bits, K) : nullptr,
                      K,
                      panel_bytes};
    if (four_bits) int4_tile<ROWS, PANELS>(of, sums);
    else int8_tile<ROWS, PANELS>(of, sums);
    for (int r = 0; r < ROWS; ++r) {
      for (int part = 0; part < 2 * PANELS; ++part) {
        const int64_t feature = panel * kPanel + part * kLanes, left = N - feature;
        if (left <= 0) break;
        Vec v = sums[r][part];
        if (!four_bits) v = mul(v, load(static_cast<const float*>(scales) + feature));
        if (bias != nullptr) v = add(v, load_some(bias + feature, left));
        store_some(out + (row + r) * N + feature, v, left);
      }
    }
  }

  // Multiplies by panels [begin, end), as many at once as the registers allow.
  template <int ROWS, int PANELS = max_panels(ROWS)>
  void tiles(int64_t row, int64_t begin, int64_t end) const {
    for (; begin + PANELS <= end; begin += PANELS) tile<ROWS, PANELS>(row, begin);
    if constexpr (PANELS > 1) tiles<ROWS, PANELS / 2>(row, begin, end);
  }

  // Calls `tiles` with the number of rows as a constant.
  template <int ROWS>
  void tiles_of(int64_t count, int64_t row, int64_t begin, int64_t end) const {
    if (count == ROWS) return tiles<ROWS>(row, begin, end);
    if constexpr (ROWS > 1) tiles_of<ROWS - 1>(count, row, begin, end);
  }

  void panels(int64_t begin, int64_t end) const {
    if (rows <= kRows) return tiles_of<kRows>(rows, 0, begin, end);
    // A block of rows stays in the L2 cache while it is multiplied by all panels.
    constexpr int64_t kBlock = 64;
    for (int64_t first = 0; first < rows; first += kBlock) {
      const int64_t last = std::min(rows, first + kBlock);
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t r = first; r < last; r += kRows) {
          tiles_of<kRows>(std::min<int64_t>(kRows, last - r), r, panel, panel + 1);
        }
      }
    }
  }
};

// x: [rows of all groups, K].  weights: of the first group; those of the other groups follow.
template <typename X, typename Out>
void multiply_groups(const X* x, const Groups& groups, int64_t K, const QuantizedWeights& weights, Out* out) {
  const std::vector<GroupRows> parts = groups_with_rows(groups);
  if (parts.empty()) return;
  const Quantized all = quantize(x, groups.begins[groups.count], K);
  const int64_t value_bytes = weights.num_panels * panel_bytes_of(weights.four_bits, K);
  const int64_t scale_bytes = weights.num_panels * panel_scales_of(weights.four_bits, K) * (weights.four_bits ? 2 : 4);
  const int64_t fewest = std::min<int64_t>(parts.back().rows, kPanels), features = weights.features;
  const int64_t least = max_panels(static_cast<int>(fewest));
  parallel_group_pieces(parts, weights.num_panels, least, [&](size_t at, int64_t begin, int64_t end) {
    const auto [group, row, rows] = parts[at];
    const Product<Out> product{all.from(row),
                               static_cast<const char*>(weights.values) + group * value_bytes,
                               static_cast<const char*>(weights.scales) + group * scale_bytes,
                               weights.bias == nullptr ? nullptr : weights.bias + group * features,
                               out + row * features,
                               rows,
                               features,
                               weights.four_bits};
    product.panels(begin, end);
  });
}

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

// x: [..., K].  packed, scales: see above; scales of int8 are float32 [ceil(N / W) * W].  bias: float32 [N].  Returns
// [..., N] in x's type, or in float32.
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
  const int64_t begins[] = {0, rows};
  dispatch_type(type, [&]<typename X>(X*) {
    const X* from = static_cast<const X*>(x);
    if (float32_out) multiply_groups(from, {1, begins}, K, weights, static_cast<float*>(out));
    else multiply_groups(from, {1, begins}, K, weights, static_cast<X*>(out));
  });
}

void gridwork::grouped_quantized_linear(Type type, const void* x, const Groups& groups, int64_t K,
                                        const QuantizedWeights& weights, void* out) {
  dispatch_type(type, [&]<typename X>(X*) {
    multiply_groups(static_cast<const X*>(x), groups, K, weights, static_cast<X*>(out));
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
