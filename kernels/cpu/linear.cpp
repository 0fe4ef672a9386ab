// Linear layer with packed weights in bfloat16, float16 or float32, summed in float32.
//
// Packed weights: [ceil(N / W), ceil(K / D), W, D], panels of W = 2 * kLanes output features, of which D = kDepth
// consecutive k lie together. What is beyond N or K is zero; K is filled up to what is multiplied at once.
//
// Where the CPU has a matrix unit (AMX), bfloat16 is multiplied there, or, for one row or two, as there; else where it
// multiplies pairs of bfloat16 (AVX512-BF16), in pairs. Elsewhere, and for x in float32, a bfloat16 is widened when it
// is used: it is the upper half of the float32 of the same value.
//
// Every output element is one chain of multiply-adds over k = 0 .. K-1, or of a matrix unit's products, whatever the
// number of rows: a row's result does not depend on the other rows of the batch. Where K is cut into pieces, sums are
// put aside unrounded.

#include <algorithm>
#include <optional>

#include "linear_unit.h"
#include "pieces.h"
#include "row_products.h"
#include "scratch.h"
#include "simd.h"
#include "tensors.h"
#include "thread_pool.h"

namespace {

using namespace gridwork;

// Rows of one panel that are summed at once: as many as there are registers for.
constexpr int kRows = kLanes == 16 ? 12 : 6;
// Tiles of so many rows that go through all panels together: they shall stay in a core's L2 cache.
constexpr int64_t kBlockTiles = 8;
// Most of K for which a panel and the rows of a tile, of values of type X, stay in the L1 cache beside their sums.
template <typename X, typename W>
constexpr int64_t kPiece = (26 << 10) / (kPanel * sizeof(W) + kRows * sizeof(X));

// Weights of a panel that are asked for before they are used.
constexpr int64_t kAhead = 4096;

// What K is filled up to a multiple of.
template <typename W>
constexpr int64_t kMultiple = kDepth<W>;
#if defined(GRIDWORK_MATRIX_UNIT)
template <>
constexpr int64_t kMultiple<bf16> = 2 * kUnitPairs;
#endif

// Where a tile's sums begin and end.
template <typename Out>
struct Target {
  Out* out;          // first row and feature
  int64_t stride;    // between rows
  int64_t features;  // from the first one on
  const float* bias; // of the first feature, or null
  float* partial;    // [rows, kPanel]: sums of the pieces so far
  bool first, last;  // whether this is the first, the last piece
  // Weights that will be needed next, as so many groups of k of a panel: they are asked for while this tile is
  // computed.
  const void* ahead = nullptr;
  int64_t ahead_groups = 0;
};

// ROWS rows of x times PANELS consecutive panels, over `count` groups of kDepth k.
//   x: [ROWS, K], or, if TILED, as `in_tiles` has it.  w: the first panel at the first k.
// A function of its own, since all of them in one take the compiler minutes.
template <typename X, typename W, int ROWS, int PANELS, bool TILED, typename Out>
__attribute__((noinline)) void tile(const X* x, int64_t K, const W* w, int64_t count, const Target<Out>& to) {
  const int64_t x_stride = TILED ? kDepth<W> : K, panel_stride = K * kPanel;
  constexpr int64_t x_step = TILED ? kRows * kDepth<W> : kDepth<W>;
  constexpr int kVecs = 2 * PANELS;
  Vec sum[ROWS][kVecs];
  each<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    each<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      sum[r][v] = to.first ? zero() : load(to.partial + r * kPanel + v % 2 * kLanes);
    });
  });
  constexpr int64_t kGroup = kDepth<W> * kPanel;
  for (int64_t k = 0; k < count; ++k) {
    if (k < to.ahead_groups) {
      const char* next = static_cast<const char*>(to.ahead) + k * kGroup * static_cast<int64_t>(sizeof(W));
      for (size_t i = 0; i < kGroup * sizeof(W); i += 64) _mm_prefetch(next + i, _MM_HINT_T1);
    }
    const W* at[kVecs];
    each<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      at[v] = w + k * kGroup + v / 2 * panel_stride + v % 2 * kLanes * kDepth<W>;
    });
    multiply<W, ROWS, kVecs>(x + k * x_step, x_stride, at, sum);
  }
  each<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    each<PANELS>([&](auto p) GRIDWORK_INLINE_LAMBDA {
      Vec a = sum[r][2 * p], b = sum[r][2 * p + 1];
      if (!to.last) {
        store(to.partial + r * kPanel, a);
        store(to.partial + r * kPanel + kLanes, b);
        return;
      }
      const int64_t feature = p * kPanel, left = to.features - feature;
      if (left <= 0) return;
      if (to.bias != nullptr) {
        a = add(a, load_some(to.bias + feature, left));
        b = add(b, load_some(to.bias + feature + kLanes, left - kLanes));
      }
      Out* o = to.out + r * to.stride + feature;
      store_some(o, a, left);
      if (left > kLanes) store_some(o + kLanes, b, left - kLanes);
    });
  });
}

// `rows` rows, by a switch over their number.
template <typename X, typename W, int PANELS, bool TILED, int MOST, typename Out>
void tile_of(int64_t rows, const X* x, int64_t K, const W* w, int64_t count, const Target<Out>& to) {
  if (rows == MOST) return tile<X, W, MOST, PANELS, TILED>(x, K, w, count, to);
  if constexpr (MOST > 1) tile_of<X, W, PANELS, TILED, MOST - 1>(rows, x, K, w, count, to);
}

// Most rows that sums of so many panels leave registers for.
constexpr int most_rows(int panels) { return std::max(1, kRows / panels); }
// Up to so many rows wait for the weights, and are computed with several panels at once.
constexpr int kFewRows = most_rows(2);

// Rows are cut into tiles of about the same number: one of a few rows takes nearly as long as a full one.
int64_t num_tiles(int64_t rows) { return (rows + kRows - 1) / kRows; }
int64_t first_row(int64_t tile, int64_t rows) { return tile * rows / num_tiles(rows); }

template <typename X, typename W, typename Out>
struct Product {
  const X* x;  // [rows, K]; more than kFewRows rows: see `in_tiles`
  const W* packed;
  const float* bias;
  Out* out;  // [rows, N]
  int64_t rows, K, N;  // K: a multiple of kDepth

  // All rows, which are few, times PANELS panels.
  template <int PANELS>
  void few(int64_t panel) const {
    const int64_t feature = panel * kPanel;
    Target<Out> to{out + feature, N, N - feature, bias == nullptr ? nullptr : bias + feature, nullptr, true, true};
    // With a single stream, what the CPU foresees by itself is too little.
    if (PANELS == 1) to.ahead = packed + panel * K * kPanel + kAhead, to.ahead_groups = K / kDepth<W>;
    tile_of<X, W, PANELS, false, std::min(kFewRows, most_rows(PANELS))>(rows, x, K, packed + panel * K * kPanel,
                                                                        K / kDepth<W>, to);
  }

  // Tiles [begin, end) times one panel, piece by piece of K: the piece of the panel stays in the L1 cache.
  void many(int64_t begin, int64_t end, int64_t panel) const {
    alignas(64) float partial[kBlockTiles * kRows * kPanel];
    const int64_t feature = panel * kPanel;
    // Pieces of about the same length.
    const int64_t pieces = (K + kPiece<X, W> - 1) / kPiece<X, W>;
    const int64_t most = (K / kDepth<W> + pieces - 1) / pieces * kDepth<W>;
    for (int64_t k = 0; k < K; k += most) {
      const int64_t piece = std::min(most, K - k), groups = piece / kDepth<W>;
      const W* weights = packed + (panel * K + k) * kPanel;
      int64_t ahead = 0;
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t row = first_row(tile, rows), count = first_row(tile + 1, rows) - row;
        Target<Out> to{out + row * N + feature, N, N - feature, bias == nullptr ? nullptr : bias + feature,
                       partial + (tile - begin) * kRows * kPanel, k == 0, k + piece == K};
        // The next piece lies behind this one. Each of the tiles asks for its share of it.
        to.ahead_groups = (groups - ahead + end - tile - 1) / (end - tile);
        to.ahead = weights + (groups + ahead) * kDepth<W> * kPanel;
        ahead += to.ahead_groups;
        tile_of<X, W, 1, true, kRows>(count, x + (tile * K + k) * kRows, K, weights, groups, to);
      }
    }
  }

  // All rows times panels [begin, end).
  void panels(int64_t begin, int64_t end) const {
    if (rows > kFewRows) {
      const int64_t tiles = num_tiles(rows);
      for (int64_t tile = 0; tile < tiles; tile += kBlockTiles) {
        for (int64_t panel = begin; panel < end; ++panel) many(tile, std::min(tile + kBlockTiles, tiles), panel);
      }
      return;
    }
    for (int64_t panel = begin; panel < end;) {
      const int64_t left = end - panel;
      // So that enough independent sums hide the latency of the multiply-add.
      if (rows <= most_rows(4) && left >= 4) few<4>(panel), panel += 4;
      else if (left >= 2) few<2>(panel), panel += 2;
      else few<1>(panel), panel += 1;
    }
  }
};

// x, [rows, K], with rows of `padded` values, those beyond K zero: x itself, or a copy in a thread's own memory.
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

// Values that are multiplied together, one of each kDepth.
template <typename X, int64_t DEPTH>
struct Together {
  X values[DEPTH];
};

// to[k * kRows + r] = from[r * stride + k] for `rows` rows, at most kRows, and `count` k. What is beyond `rows` is
// undefined.
template <typename T>
void interleave(const T* from, int64_t stride, int64_t rows, int64_t count, T* to) {
  // So many k of all rows: whole lines of both.
  constexpr int64_t kStrip = 64 / sizeof(T);
  for (int64_t first = 0; first < count; first += kStrip) {
    const int64_t last = std::min(count, first + kStrip);
    int64_t row = 0;
    if constexpr (sizeof(T) == sizeof(float)) {
      for (; row + 4 <= rows && last - first == kStrip; row += 4) {
        for (int64_t k = first; k < last; k += 4) {
          const auto load_four = [&](int64_t r) {
            return _mm_loadu_ps(reinterpret_cast<const float*>(from + (row + r) * stride + k));
          };
          __m128 a = load_four(0), b = load_four(1), c = load_four(2), d = load_four(3);
          _MM_TRANSPOSE4_PS(a, b, c, d);
          float* four = reinterpret_cast<float*>(to + k * kRows + row);
          _mm_storeu_ps(four, a), _mm_storeu_ps(four + kRows, b);
          _mm_storeu_ps(four + 2 * kRows, c), _mm_storeu_ps(four + 3 * kRows, d);
        }
      }
    }
    for (; row < rows; ++row) {
      for (int64_t k = first; k < last; ++k) to[k * kRows + row] = from[row * stride + k];
    }
  }
}

// x, [rows, K], as tiles read it, from one end of memory to the other: [num_tiles, K / kDepth, kRows, kDepth], in a
// thread's own memory. Rows far apart would push each other out of the L1 cache, and their pages out of the TLB.
template <typename W, typename X>
const X* in_tiles(const X* x, int64_t rows, int64_t K) {
  using Group = Together<X, kDepth<W>>;
  thread_local Scratch scratch;
  const int64_t groups = K / kDepth<W>, tiles = num_tiles(rows);
  X* copy = reinterpret_cast<X*>(scratch.floats(static_cast<size_t>(tiles * kRows * K)));
  const auto copy_tiles = [=](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = first_row(tile, rows), count = first_row(tile + 1, rows) - row;
      interleave(reinterpret_cast<const Group*>(x + row * K), groups, count, groups,
                 reinterpret_cast<Group*>(copy + tile * kRows * K));
    }
  };
  if (rows * K < 32768) copy_tiles(0, tiles);
  else parallel_for(tiles, std::max<int64_t>(1, 8192 / (kRows * K)), copy_tiles);
  return copy;
}

template <typename X, typename W, typename Out>
void run(const X* x, int64_t rows, int64_t K, const PackedWeights& weights, Out* out) {
  using In = Multiplied<X, W>;
  const int64_t padded = weights.groups * kDepth<W>, num_panels = weights.num_panels;
  const In* in = rows_as<In>(x, rows, K, padded);
#if defined(GRIDWORK_MATRIX_UNIT)
  if constexpr (std::is_same_v<In, bf16>) {
    const PanelColumns<Out> columns{static_cast<const bf16*>(weights.values), weights.bias, out, padded,
                                    weights.features};
    if (rows <= FewRowsProduct<Out>::kMostRows) {
      const FewRowsProduct<Out> few(in, rows, columns);
      in_pieces(num_panels, 4, [&](int64_t begin, int64_t end) { few.run(begin, end); });
      return;
    }
    const UnitProduct<PanelColumns<Out>> unit(UnitRows(in, rows, padded), columns);
    in_pieces(num_panels, 1, [&](int64_t begin, int64_t end) { unit.run(begin, end); });
    return;
  }
#endif
  if (rows > kFewRows) in = in_tiles<W>(in, rows, padded);
  const Product<In, W, Out> product{in,   static_cast<const W*>(weights.values), weights.bias, out, rows, padded,
                                    weights.features};
  // Few rows: four panels at least, which are computed together when there is one row.
  in_pieces(num_panels, rows > kFewRows ? 1 : 4, [&](int64_t begin, int64_t end) { product.panels(begin, end); });
}

// x: [..., K] in the weights' type or float32.  packed: see above.  bias: float32 [N].  Returns [..., N] in x's type,
// or, not rounded, in float32.
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

// weight: [N, K], contiguous, of any of the types.  Returns the packed form in the same type.
Tensor pack(const Tensor weight) {
  const int64_t N = weight.size(0), K = weight.size(1), num_panels = (N + kPanel - 1) / kPanel;
  Tensor packed;
  by_type(type_of(weight), [&]<typename W>(W*) {
    constexpr int64_t kTogether = kDepth<W>;
    const int64_t multiple = kMultiple<W>, groups = (K + multiple - 1) / multiple * multiple / kTogether;
    packed = torch::stable::new_empty(weight, {num_panels, groups, kPanel, kTogether});
    const W* in = data<W>(weight);
    W* out = mutable_data<W>(packed);
    parallel_for(num_panels, 1, [&](int64_t begin, int64_t end) {
      constexpr int64_t kStrip = 64;  // values of k whose place in the panel stays in the L1 cache
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t first = 0; first < groups * kTogether; first += kStrip) {
          const int64_t last = std::min(groups * kTogether, first + kStrip);
          for (int64_t lane = 0; lane < kPanel; ++lane) {
            const int64_t feature = panel * kPanel + lane;
            W* to = out + panel * groups * kTogether * kPanel + lane * kTogether;
            for (int64_t k = first; k < last; ++k) {
              to[k / kTogether * kTogether * kPanel + k % kTogether] =
                  feature < N && k < K ? in[feature * K + k] : W{};
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
  by_type(type, [&]<typename X>(X*) {
    by_type(weights.type, [&]<typename W>(W*) {
      const X* from = static_cast<const X*>(x);
      if (float32_out) run<X, W>(from, rows, K, weights, static_cast<float*>(out));
      else run<X, W>(from, rows, K, weights, static_cast<X*>(out));
    });
  });
}

void gridwork::gated_linear(Type type, const void* x, int64_t rows, int64_t K, const PackedWeights& weights,
                            int64_t kind, void* halves, void* out) {
  const int64_t width = weights.features / 2;
#if defined(GRIDWORK_MATRIX_UNIT)
  // Few rows wait for the weights, of which this would read every other line.
  if (type == Type::bfloat16 && weights.type == Type::bfloat16 && rows > 2 * kUnitRows) {
    const int64_t padded = weights.groups * kDepth<bf16>;
    const bf16* in = rows_as<bf16>(static_cast<const bf16*>(x), rows, K, padded);
    by_activation(kind, [&]<typename F>(const F& activation) {
      const GatedColumns<F> columns{static_cast<const bf16*>(weights.values), weights.bias, static_cast<bf16*>(out),
                                    padded, width, activation};
      const UnitProduct<GatedColumns<F>> unit(UnitRows(in, rows, padded), columns);
      in_pieces(width / kUnitLanes, 2, [&](int64_t begin, int64_t end) { unit.run(begin, end); });
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
