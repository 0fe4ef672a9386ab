// Linear layer with packed weights in bfloat16, float16 or float32, summed in float32.
//
// Packed weights have the shape [ceil(N / W), ceil(K / D), W, D]: panels of W = 2 * kLanes output features, in which
// D = kDepth consecutive k of a feature are contiguous. Padding of N and K is zero; K is padded to the number of values
// that one step multiplies.
//
// With AMX, bfloat16 is multiplied by AMX, or, for one or two rows, by vector instructions with the same result. With
// AVX512-BF16 alone, it is multiplied in pairs. Otherwise, and for x in float32, weights are converted to float32: when
// they are used, or, for many rows, once for a block of rows. A bfloat16 is the upper half of the float32 of its value.
//
// Every output is one chain of multiply-adds over k = 0 .. K-1, or of AMX's products, for any number of rows: a row's
// result does not depend on the other rows of the batch. Where K is cut into pieces, sums are kept unrounded in
// between.

#include <algorithm>
#include <optional>
#include <vector>

#include "common/scratch.h"
#include "common/simd.h"
#include "common/tensors.h"
#include "common/thread_pool.h"
#include "common/work_split.h"
#include "linear/linear_tiles.h"

namespace {

using namespace gridwork;

// Returns x [rows, K] with rows padded by zeros to `padded` values: x itself, or a copy in the thread's own memory.
template <typename To, typename X>
const To* rows_as(const X* x, int64_t rows, int64_t K, int64_t padded) {
  if constexpr (std::is_same_v<X, To>) {
    if (padded == K) return x;
  }
  thread_local Scratch scratch;
  To* copy = reinterpret_cast<To*>(scratch.floats(static_cast<size_t>(rows * padded)));
  const auto copy_rows = [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const X* from = x + row * K;
      To* to = copy + row * padded;
      if constexpr (std::is_same_v<X, To>) {
        std::copy_n(from, K, to);
      } else {
        int64_t i = 0;
        for (; i + kLanes <= K; i += kLanes) store(to + i, load(from + i));
        for (; i < K; ++i) to[i] = widen(from[i]);
      }
      std::fill(to + K, to + padded, To{});
    }
  };
  if (rows * K < 32768) copy_rows(0, rows);
  else parallel_for(rows, std::max<int64_t>(1, 8192 / K), copy_rows);
  return copy;
}

// DEPTH consecutive values of a row, which are multiplied in one step.
template <typename X, int64_t DEPTH>
struct Interleaved {
  X values[DEPTH];
};

// Sets to[k * kRows + r] = from[r * stride + k] for sixteen k of 32-bit values, four rows at a time. Returns the number
// of rows that are done.
inline int64_t interleave_strip(const float* from, int64_t stride, int64_t rows, float* to) {
  int64_t row = 0;
#if defined(__AVX512F__)
  static_assert(kRows % 4 == 0);
  for (; row < rows; row += 4) {
    // Missing rows are replaced by the last one.
    const auto load_row = [&](int64_t r) { return _mm512_loadu_ps(from + std::min(row + r, rows - 1) * stride); };
    const __m512 a = load_row(0), b = load_row(1), c = load_row(2), d = load_row(3);
    const auto pairs = [](__m512 v) { return _mm512_castps_pd(v); };
    const __m512d ab = pairs(_mm512_unpacklo_ps(a, b)), cd = pairs(_mm512_unpacklo_ps(c, d));
    const __m512d ab_high = pairs(_mm512_unpackhi_ps(a, b)), cd_high = pairs(_mm512_unpackhi_ps(c, d));
    // Each quarter of the i-th vector holds the four rows of k = 4 * quarter + i.
    const __m512d four[] = {_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd), _mm512_unpacklo_pd(ab_high, cd_high),
                            _mm512_unpackhi_pd(ab_high, cd_high)};
    unroll<4>([&](auto i) GRIDWORK_INLINE_LAMBDA {
      unroll<4>([&](auto quarter) GRIDWORK_INLINE_LAMBDA {
        const __m512 rows_of_k = _mm512_castpd_ps(four[i]);
        _mm_storeu_ps(to + (4 * quarter + i) * kRows + row, _mm512_extractf32x4_ps(rows_of_k, quarter));
      });
    });
  }
#else
  for (; row + 4 <= rows; row += 4) {
    for (int64_t k = 0; k < 16; k += 4) {
      const auto load_four = [&](int64_t r) { return _mm_loadu_ps(from + (row + r) * stride + k); };
      __m128 a = load_four(0), b = load_four(1), c = load_four(2), d = load_four(3);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      float* four = to + k * kRows + row;
      _mm_storeu_ps(four, a), _mm_storeu_ps(four + kRows, b);
      _mm_storeu_ps(four + 2 * kRows, c), _mm_storeu_ps(four + 3 * kRows, d);
    }
  }
#endif
  return row;
}

// Sets to[k * kRows + r] = from[r * stride + k] for `rows` rows, at most kRows, and `count` k. Values of further rows
// are undefined.
template <typename T>
void interleave(const T* from, int64_t stride, int64_t rows, int64_t count, T* to) {
  // k of all rows that are copied together: whole cache lines on both sides.
  constexpr int64_t kStrip = 64 / sizeof(T);
  for (int64_t first = 0; first < count; first += kStrip) {
    const int64_t last = std::min(count, first + kStrip);
    int64_t row = 0;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (last - first == kStrip) {
        row = interleave_strip(reinterpret_cast<const float*>(from + first), stride, rows,
                               reinterpret_cast<float*>(to + first * kRows));
      }
    }
    for (; row < rows; ++row) {
      for (int64_t k = first; k < last; ++k) to[k * kRows + row] = from[row * stride + k];
    }
  }
}

// Copies x [rows, K] into the thread's own memory in the order in which tiles read it:
// [tiles, K / kDepth, kRows, kDepth]. Rows that lie far apart would evict each other from the L1 cache, and their pages
// from the TLB.
//   first_tile: index of each part's first tile; parts of few rows have no tiles.
template <typename W, typename X>
const X* in_tiles(const X* x, const std::vector<GroupRows>& parts, int64_t K, std::vector<int64_t>& first_tile) {
  using Group = Interleaved<X, kDepth<W>>;
  thread_local Scratch scratch;
  struct TileRows {
    int64_t first, count;
  };
  std::vector<TileRows> tiles;
  for (const GroupRows& part : parts) {
    first_tile.push_back(static_cast<int64_t>(tiles.size()));
    for (int64_t tile = 0; part.rows > kFewRows && tile < num_tiles(part.rows); ++tile) {
      const int64_t first = first_row(tile, part.rows);
      tiles.push_back({part.begin + first, first_row(tile + 1, part.rows) - first});
    }
  }
  const int64_t groups = K / kDepth<W>, count = static_cast<int64_t>(tiles.size());
  X* copy = reinterpret_cast<X*>(scratch.floats(static_cast<size_t>(count * kRows * K)));
  const auto copy_tiles = [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const auto [first, rows] = tiles[static_cast<size_t>(tile)];
      interleave(reinterpret_cast<const Group*>(x + first * K), groups, rows, groups,
                 reinterpret_cast<Group*>(copy + tile * kRows * K));
    }
  };
  if (count * kRows * K < 32768) copy_tiles(0, count);
  else parallel_for(count, std::max<int64_t>(1, 8192 / (kRows * K)), copy_tiles);
  return copy;
}

#if defined(GRIDWORK_AMX)
template <typename Out>
void run_on_amx(const bf16* in, const std::vector<GroupRows>& parts, int64_t padded, const PackedWeights& weights,
                Out* out) {
  std::vector<AmxRows> rows;
  for (const GroupRows& part : parts) rows.emplace_back(in + part.begin * padded, part.rows, padded, parts.size() == 1);
  // Pieces for few rows have at least four panels, which one row is multiplied by at once.
  const int64_t least = parts[0].rows <= FewRowsProduct<Out>::kMaxRows ? 4 : 1;
  parallel_group_pieces(parts, weights.num_panels, least, [&](size_t at, int64_t begin, int64_t end) {
    const GroupRows& part = parts[at];
    const PackedWeights own = weights.of(part.group, kPanel * kDepth<bf16>);
    const PanelColumns<Out> columns{static_cast<const bf16*>(own.values), own.bias, out + part.begin * own.features,
                                    padded, own.features};
    if (part.rows <= FewRowsProduct<Out>::kMaxRows) {
      FewRowsProduct<Out>(in + part.begin * padded, part.rows, columns).run(begin, end);
    } else {
      AmxProduct<PanelColumns<Out>>(rows[at], columns).run(begin, end);
    }
  });
}
#endif

template <typename X, typename W, typename Out>
void run(const X* x, const Groups& groups, int64_t K, const PackedWeights& weights, Out* out) {
  using In = ProductType<X, W>;
  const int64_t padded = weights.groups * kDepth<W>;
  const std::vector<GroupRows> parts = groups_with_rows(groups);
  if (parts.empty()) return;
  const In* in = rows_as<In>(x, groups.begins[groups.count], K, padded);
#if defined(GRIDWORK_AMX)
  if constexpr (std::is_same_v<In, bf16>) return run_on_amx(in, parts, padded, weights, out);
#endif
  const int64_t most = parts[0].rows, fewest = parts.back().rows;
  std::vector<int64_t> first_tile;
  const In* tiles = most > kFewRows ? in_tiles<W>(in, parts, padded, first_tile) : nullptr;
  // Pieces for few rows have at least four panels, which one row is multiplied by at once.
  const int64_t least = fewest > kFewRows ? 1 : 4;
  parallel_group_pieces(parts, weights.num_panels, least, [&](size_t at, int64_t begin, int64_t end) {
    const GroupRows& part = parts[at];
    const PackedWeights own = weights.of(part.group, kPanel * kDepth<W>);
    const In* rows = part.rows > kFewRows ? tiles + first_tile[at] * kRows * padded : in + part.begin * padded;
    Product<In, W, Out>{rows,      static_cast<const W*>(own.values), own.bias, out + part.begin * own.features,
                        part.rows, padded,                            own.features}
        .panels(begin, end);
  });
}

// x: [..., K] in the weights' type or float32.  packed: see above.  bias: float32 [N].  Returns [..., N] in x's type,
// or unrounded in float32.
Tensor linear_of(const Tensor x, const Tensor packed, std::optional<Tensor> bias, int64_t out_features,
                 bool float32_out) {
  const Tensor rows = torch::stable::contiguous(x);
  auto out_shape = shape(rows);
  const int64_t K = out_shape.back();
  out_shape.back() = out_features;
  const auto dtype = float32_out ? ScalarType::Float : rows.scalar_type();
  Tensor out = torch::stable::new_empty(rows, out_shape, dtype);
  const int64_t M = K == 0 ? 0 : rows.numel() / K;
  if (M == 0) return out;
  const PackedWeights weights{type_of(packed),   packed.data_ptr(), packed.size(0),
                              packed.size(1), out_features,      bias.has_value() ? data<float>(*bias) : nullptr};
  linear(type_of(rows), rows.data_ptr(), M, K, weights, out.data_ptr(), float32_out);
  return out;
}

// weight: [N, K], or [layers, N, K] for several layers, of any type and any strides.  Returns the packed form in the
// same type.
Tensor pack(const Tensor weight) {
  const int64_t N = weight.size(-2), K = weight.size(-1), num_panels = (N + kPanel - 1) / kPanel;
  const int64_t by_feature = weight.stride(-2), by_k = weight.stride(-1);
  const bool several = weight.dim() == 3;
  const int64_t layers = several ? weight.size(0) : 1, by_layer = several ? weight.stride(0) : 0;
  Tensor packed;
  dispatch_type(type_of(weight), [&]<typename W>(W*) {
    constexpr int64_t kTogether = kDepth<W>;
    const int64_t multiple = kMultiple<W>, groups = (K + multiple - 1) / multiple * multiple / kTogether;
    std::vector<int64_t> shape{num_panels, groups, kPanel, kTogether};
    if (several) shape.insert(shape.begin(), layers);
    packed = torch::stable::new_empty(weight, shape);
    const W* weights = data<W>(weight);
    W* const all = mutable_data<W>(packed);
    parallel_for(layers * num_panels, 1, [&](int64_t begin, int64_t end) {
      constexpr int64_t kStrip = 64;  // number of k whose part of the panel stays in the L1 cache
      for (int64_t at = begin; at < end; ++at) {
        const W* in = weights + at / num_panels * by_layer;
        W* const out = all + at * groups * kTogether * kPanel;
        for (int64_t first = 0; first < groups * kTogether; first += kStrip) {
          const int64_t last = std::min(groups * kTogether, first + kStrip);
          for (int64_t lane = 0; lane < kPanel; ++lane) {
            const int64_t feature = at % num_panels * kPanel + lane;
            W* to = out + lane * kTogether;
            for (int64_t k = first; k < last; ++k) {
              to[k / kTogether * kTogether * kPanel + k % kTogether] =
                  feature < N && k < K ? in[feature * by_feature + k * by_k] : W{};
            }
          }
        }
      }
    });
  });
  return packed;
}

int64_t panel() { return kPanel; }

}  // namespace

void gridwork::linear(Type type, const void* x, int64_t rows, int64_t K, const PackedWeights& weights, void* out,
                      bool float32_out) {
  const int64_t begins[] = {0, rows};
  const Groups all{1, begins};
  dispatch_type(type, [&]<typename X>(X*) {
    dispatch_type(weights.type, [&]<typename W>(W*) {
      const X* from = static_cast<const X*>(x);
      if (float32_out) run<X, W>(from, all, K, weights, static_cast<float*>(out));
      else run<X, W>(from, all, K, weights, static_cast<X*>(out));
    });
  });
}

void gridwork::grouped_linear(Type type, const void* x, const Groups& groups, int64_t K, const PackedWeights& weights,
                              void* out) {
  dispatch_type(type, [&]<typename T>(T*) {
    run<T, T>(static_cast<const T*>(x), groups, K, weights, static_cast<T*>(out));
  });
}

void gridwork::gated_linear(Type type, const void* x, int64_t rows, int64_t K, const PackedWeights& weights,
                            Activation kind, void* halves, void* out) {
  const int64_t width = weights.features / 2;
#if defined(GRIDWORK_AMX)
  // Few rows are limited by memory, and plain columns read the weights sequentially. Gated columns were not measured
  // there.
  if (type == Type::bfloat16 && weights.type == Type::bfloat16 && rows > 2 * kAmxRows) {
    const int64_t padded = weights.groups * kDepth<bf16>;
    const bf16* in = rows_as<bf16>(static_cast<const bf16*>(x), rows, K, padded);
    dispatch_activation<bf16>(kind, [&]<typename F>(const F& activation) {
      const GatedColumns<F> columns{static_cast<const bf16*>(weights.values), weights.bias, static_cast<bf16*>(out),
                                    padded, width, activation};
      const AmxProduct<GatedColumns<F>> unit(AmxRows(in, rows, padded), columns);
      parallel_pieces(width / kPanel, 1, [&](int64_t begin, int64_t end) { unit.run(begin, end); });
    });
    return;
  }
#endif
  linear(type, x, rows, K, weights, halves, false);
  const char* up = static_cast<const char*>(halves) + width * (type == Type::float32 ? 4 : 2);
  gated_activation(type, {halves, 2 * width}, {up, 2 * width}, rows, width, kind, out);
}

STABLE_TORCH_LIBRARY(gridwork_cpu, m) {
  m.def("linear(Tensor x, Tensor packed, Tensor? bias, int out_features, bool float32_out) -> Tensor");
  m.def("linear_pack(Tensor weight) -> Tensor");
  m.def("linear_panel() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear_of));
  m.impl("linear_pack", TORCH_BOX(&pack));
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CompositeExplicitAutograd, m) {
  m.impl("linear_panel", TORCH_BOX(&panel));
}
