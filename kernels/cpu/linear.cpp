// Linear layer with packed weights in bfloat16, float16 or float32, multiplied in float32.
//
// A bfloat16 is the upper half of the float32 of the same value: it is widened by one shift or mask when it is used, and
// memory is read at bfloat16's size.
//
// Packed weights: [ceil(N / W), K, W], panels of W = 2 * kLanes output features; those beyond N are zero. In a panel of
// bfloat16, 32-bit lane j holds feature j in its lower and feature j + kLanes in its upper half; in the others features
// lie in their order.
//
// Every output element is one chain of fused multiply-adds over k = 0 .. K-1, whatever the number of rows: a row's
// result does not depend on the other rows of the batch. Where K is cut into pieces, sums are put aside unrounded.

#include <algorithm>
#include <optional>

#include "scratch.h"
#include "simd.h"
#include "tensors.h"
#include "thread_pool.h"

namespace {

using namespace gridwork;

constexpr int64_t kPanel = 2 * kLanes;
// Rows of one panel that are summed at once: as many as there are registers for.
constexpr int kRows = kLanes == 16 ? 12 : 6;
// Rows that go through all panels together: their float32 copies shall stay in a core's L2 cache.
constexpr int64_t kRowBlock = kRows * 8;
// Piece of K for which a panel and the rows of a tile fit into the L1 cache.
constexpr int64_t kPiece = 384;

// Where a tile's sums begin and end.
template <typename Out>
struct Target {
  Out* out;          // first row and feature
  int64_t stride;    // between rows
  int64_t features;  // from the first one on
  const float* bias; // of the first feature, or null
  float* partial;    // [rows, kPanel]: sums of the pieces so far
  bool first, last;  // whether this is the first, the last piece
};

// ROWS rows of x times PANELS consecutive panels, over `count` values of k.
//   x: row stride x_stride.  w: the first panel at the first k; panels are panel_stride apart.
template <typename W, int ROWS, int PANELS, typename Out>
void tile(const float* x, int64_t x_stride, const W* w, int64_t panel_stride, int64_t count, const Target<Out>& to) {
  Vec low[ROWS][PANELS], high[ROWS][PANELS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) {
      low[r][p] = to.first ? zero() : load(to.partial + r * kPanel);
      high[r][p] = to.first ? zero() : load(to.partial + r * kPanel + kLanes);
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    Vec wl[PANELS], wh[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) load_pair(w + p * panel_stride + k * kPanel, wl[p], wh[p]);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Vec xr = set1(x[r * x_stride + k]);
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) {
        low[r][p] = fma(xr, wl[p], low[r][p]);
        high[r][p] = fma(xr, wh[p], high[r][p]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) {
      if (!to.last) {
        store(to.partial + r * kPanel, low[r][p]);
        store(to.partial + r * kPanel + kLanes, high[r][p]);
        continue;
      }
      const int64_t feature = p * kPanel, left = to.features - feature;
      if (left <= 0) continue;
      Vec a = low[r][p], b = high[r][p];
      if (to.bias != nullptr) {
        a = add(a, load_some(to.bias + feature, left));
        b = add(b, load_some(to.bias + feature + kLanes, left - kLanes));
      }
      Out* o = to.out + r * to.stride + feature;
      store_some(o, a, left);
      if (left > kLanes) store_some(o + kLanes, b, left - kLanes);
    }
  }
}

// `rows` rows, by a switch over their number.
template <typename W, int PANELS, int MOST, typename Out>
void tile_of(int rows, const float* x, int64_t x_stride, const W* w, int64_t panel_stride, int64_t count,
             const Target<Out>& to) {
  if (rows == MOST) return tile<W, MOST, PANELS>(x, x_stride, w, panel_stride, count, to);
  if constexpr (MOST > 1) tile_of<W, PANELS, MOST - 1>(rows, x, x_stride, w, panel_stride, count, to);
}

// Most rows that sums of so many panels leave registers for.
constexpr int most_rows(int panels) { return std::max(1, kRows / panels); }

template <typename W, typename Out>
struct Product {
  const float* x;  // [rows, K]
  const W* packed;
  const float* bias;
  Out* out;  // [rows, N]
  int64_t rows, K, N;

  // A block of rows, few enough for one tile, times PANELS panels.
  template <int PANELS>
  void few(int64_t first, int64_t count, int64_t panel) const {
    const int64_t feature = panel * kPanel;
    const Target<Out> to{out + first * N + feature, N, N - feature, bias == nullptr ? nullptr : bias + feature,
                         nullptr, true, true};
    tile_of<W, PANELS, most_rows(PANELS)>(static_cast<int>(count), x + first * K, K, packed + panel * K * kPanel,
                                          K * kPanel, K, to);
  }

  // A block of rows times one panel, piece by piece of K: the piece of the panel stays in the L1 cache.
  void many(int64_t first, int64_t count, int64_t panel) const {
    alignas(64) float partial[kRowBlock * kPanel];
    const int64_t feature = panel * kPanel;
    for (int64_t k = 0; k < K; k += kPiece) {
      const int64_t piece = std::min(kPiece, K - k);
      // Tiles of about the same number of rows: one of a few rows takes nearly as long as a full one.
      for (int64_t r = 0, tiles = (count + kRows - 1) / kRows, some; r < count; r += some, --tiles) {
        some = (count - r + tiles - 1) / tiles;
        const int64_t row = first + r;
        const Target<Out> to{out + row * N + feature, N, N - feature, bias == nullptr ? nullptr : bias + feature,
                             partial + r * kPanel, k == 0, k + piece == K};
        tile_of<W, 1, kRows>(static_cast<int>(some), x + row * K + k, K,
                             packed + (panel * K + k) * kPanel, K * kPanel, piece, to);
      }
    }
  }

  // All rows times panels [begin, end).
  void panels(int64_t begin, int64_t end) const {
    for (int64_t first = 0; first < rows; first += kRowBlock) {
      const int64_t count = std::min(kRowBlock, rows - first);
      for (int64_t panel = begin; panel < end;) {
        const int64_t left = end - panel;
        // Few rows: several panels at once, so that enough independent sums hide the latency of the multiply-add.
        if (count <= most_rows(4) && left >= 4) few<4>(first, count, panel), panel += 4;
        else if (count <= most_rows(2) && left >= 2) few<2>(first, count, panel), panel += 2;
        else if (count <= kRows) few<1>(first, count, panel), panel += 1;
        else many(first, count, panel), panel += 1;
      }
    }
  }
};

// `count` values of x in float32, in a thread's own memory unless they are in float32 already.
template <typename T>
const float* widened(const T* x, int64_t rows, int64_t K) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    thread_local Scratch scratch;
    float* wide = scratch.floats(static_cast<size_t>(rows * K));
    const auto widen_rows = [=](int64_t begin, int64_t end) {
      const int64_t last = end * K;
      int64_t i = begin * K;
      for (; i + kLanes <= last; i += kLanes) store(wide + i, load(x + i));
      for (; i < last; ++i) wide[i] = widen(x[i]);
    };
    if (rows * K < 32768) widen_rows(0, rows);
    else parallel_for(rows, std::max<int64_t>(1, 8192 / K), widen_rows);
    return wide;
  }
}

template <typename W, typename Out>
void run(const float* x, int64_t rows, const Tensor& packed, const float* bias, const Tensor& out, int64_t N) {
  const Product<W, Out> product{x, data<W>(packed), bias, mutable_data<Out>(out), rows, packed.size(1), N};
  const int64_t num_panels = packed.size(0);
  // Four panels at least: they are computed together when there is one row.
  int64_t chunk = std::max<int64_t>(4, num_panels / (num_threads() * 8));
  if (rows > kRows) chunk = std::max<int64_t>(1, num_panels / (num_threads() * 16));
  parallel_for(num_panels, chunk, [&](int64_t begin, int64_t end) { product.panels(begin, end); });
}

// x: [..., K] in the weights' type or float32.  packed: see above.  bias: float32 [N].  Returns [..., N] in x's type, or,
// not rounded, in float32.
Tensor linear(const Tensor x, const Tensor packed, std::optional<Tensor> bias, int64_t out_features, bool float32_out) {
  const int64_t K = packed.size(1);
  const Tensor rows = torch::stable::contiguous(x);
  auto out_shape = shape(rows);
  out_shape.back() = out_features;
  const auto dtype = float32_out ? ScalarType::Float : rows.scalar_type();
  Tensor out = torch::stable::new_empty(rows, out_shape, dtype);
  const int64_t M = K == 0 ? 0 : rows.numel() / K;
  if (M == 0) return out;
  const float* b = bias.has_value() ? data<float>(*bias) : nullptr;
  by_type(rows, [&]<typename X>(X*) {
    const float* wide = widened(data<X>(rows), M, K);
    by_type(packed, [&]<typename W>(W*) {
      if (float32_out) run<W, float>(wide, M, packed, b, out, out_features);
      else run<W, X>(wide, M, packed, b, out, out_features);
    });
  });
  return out;
}

// weight: [N, K], contiguous, of any of the types.  Returns the packed form in the same type.
Tensor pack(const Tensor weight) {
  const int64_t N = weight.size(0), K = weight.size(1), num_panels = (N + kPanel - 1) / kPanel;
  Tensor packed = torch::stable::new_empty(weight, {num_panels, K, kPanel});
  by_type(weight, [&]<typename W>(W*) {
    const W* in = data<W>(weight);
    W* out = mutable_data<W>(packed);
    parallel_for(num_panels, 1, [&](int64_t begin, int64_t end) {
      constexpr int64_t kStrip = 64;  // values of k whose place in the panel stays in the L1 cache
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t first = 0; first < K; first += kStrip) {
          const int64_t last = std::min(K, first + kStrip);
          for (int64_t lane = 0; lane < kPanel; ++lane) {
            const int64_t place = !std::is_same_v<W, bf16> ? lane
                                  : lane < kLanes          ? 2 * lane
                                                           : 2 * (lane - kLanes) + 1;
            const int64_t feature = panel * kPanel + lane;
            W* to = out + panel * K * kPanel + place;
            for (int64_t k = first; k < last; ++k) to[k * kPanel] = feature < N ? in[feature * K + k] : W{};
          }
        }
      }
    });
  });
  return packed;
}

int64_t panel() { return kPanel; }

}  // namespace

STABLE_TORCH_LIBRARY(gridwork_cpu, m) {
  m.def("linear(Tensor x, Tensor packed, Tensor? bias, int out_features, bool float32_out) -> Tensor");
  m.def("linear_pack(Tensor weight) -> Tensor");
  m.def("linear_panel() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_pack", TORCH_BOX(&pack));
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CompositeExplicitAutograd, m) {
  m.impl("linear_panel", TORCH_BOX(&panel));
}
