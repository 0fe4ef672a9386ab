// The product of rows and packed weights by vectors, tile by tile of rows; see linear.cpp for how weights lie.
#pragma once

#include <algorithm>

#include "common/row_products.h"
#include "common/simd.h"
#include "linear/linear_amx.h"

namespace gridwork {

// Rows of one panel that are summed at once: as many as there are registers for.
constexpr int kRows = kLanes == 16 ? 12 : 6;
// Tiles of so many rows that go through all panels together: they shall stay in a core's L2 cache.
constexpr int64_t kBlockTiles = 96 / kRows;
// Most of K for which a panel and the rows of a tile, of values of type X, stay in the L1 cache beside their sums.
template <typename X, typename W>
constexpr int64_t kPiece = (26 << 10) / (kPanel * sizeof(W) + kRows * sizeof(X));

// Bytes before their use that weights of few rows are asked for, in each panel: the more places are read at once, the more
// does a core by itself foresee.
constexpr int64_t kAhead = 4096;
// Places that weights of many rows are asked for at, for the same reason.
constexpr int64_t kStreams = 2;

// What K is filled up to a multiple of.
template <typename W>
constexpr int64_t kMultiple = kDepth<W>;
#if defined(GRIDWORK_AMX)
template <>
constexpr int64_t kMultiple<bf16> = 2 * kAmxPairs;
#endif

// Weights of type W as tiles multiply them when they are widened before: float32, of which kDepth<W> vectors lie behind
// each other.
template <typename W>
struct Widened {
  float value;
};
template <typename W>
constexpr int64_t kDepth<Widened<W>> = kDepth<W>;
// What lies in the packed weights.
template <typename W>
struct PackedAs {
  using type = W;
};
template <typename W>
struct PackedAs<Widened<W>> {
  using type = W;
};

template <typename W>
GRIDWORK_INLINE Vec operand(const Widened<W>* p, int d) { return load(&p->value + d * kLanes); }
template <int COUNT, int STRIDE, int D, typename W>
GRIDWORK_INLINE void add_products_of_vector(const Widened<W>* p, const Vec* by, Vec* sum) {
  add_products_of_vector<COUNT, STRIDE, 0>(&p->value + D * kLanes, by, sum);
}

// So many tiles of rows pay for widening a panel.
constexpr int64_t kTilesToWiden = 5;

// `groups` of kDepth k of a panel.
template <typename W>
void widen_panel(const W* from, int64_t groups, Widened<W>* to) {
  for (int64_t i = 0; i < groups * kPanel * kDepth<W>; i += kLanes * kDepth<W>) {
    unroll<kDepth<W>>([&](auto d) GRIDWORK_INLINE_LAMBDA { store(&to[i].value + d * kLanes, operand(from + i, d)); });
  }
}

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

  // For the k-th of these groups, of BYTES each.
  template <int64_t BYTES>
  GRIDWORK_INLINE void prefetch(int64_t k) const {
    constexpr int64_t kLines = BYTES / 64;
    const int64_t apart = (ahead_groups * kLines + kStreams - 1) / kStreams;
    for (int64_t line = k * kLines; line < (k + 1) * kLines; ++line) {
      _mm_prefetch(static_cast<const char*>(ahead) + (line % kStreams * apart + line / kStreams) * 64, _MM_HINT_T1);
    }
  }
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
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      sum[r][v] = to.first ? zero() : load(to.partial + r * kPanel + v % 2 * kLanes);
    });
  });
  constexpr int64_t kGroup = kDepth<W> * kPanel;
  for (int64_t k = 0; k < count; ++k) {
    if constexpr (TILED) {
      if (k < to.ahead_groups) to.template prefetch<kGroup * sizeof(typename PackedAs<W>::type)>(k);
    } else {
      // What lies behind the end of these panels is the beginning of the next ones.
      constexpr int64_t kSize = sizeof(W), kBytes = kGroup * kSize;
      const bool last = (k + 1) * kBytes + kAhead > panel_stride * kSize;
      const W* asked = w + k * kGroup + (last ? (PANELS - 1) * panel_stride : 0);
      unroll<PANELS>([&](auto p) GRIDWORK_INLINE_LAMBDA {
        const char* next = reinterpret_cast<const char*>(asked + p * panel_stride) + kAhead;
        for (int64_t i = 0; i < kBytes; i += 64) _mm_prefetch(next + i, _MM_HINT_T0);
      });
    }
    const W* at[kVecs];
    unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      at[v] = w + k * kGroup + v / 2 * panel_stride + v % 2 * kLanes * kDepth<W>;
    });
    multiply<W, ROWS, kVecs>(x + k * x_step, x_stride, at, sum);
  }
  unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
    unroll<PANELS>([&](auto p) GRIDWORK_INLINE_LAMBDA {
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
template <typename X, typename W, int PANELS, bool TILED, int MAX, typename Out>
void tile_of(int64_t rows, const X* x, int64_t K, const W* w, int64_t count, const Target<Out>& to) {
  if (rows == MAX) return tile<X, W, MAX, PANELS, TILED>(x, K, w, count, to);
  if constexpr (MAX > 1) tile_of<X, W, PANELS, TILED, MAX - 1>(rows, x, K, w, count, to);
}

// Most rows that sums of so many panels leave registers for.
constexpr int max_rows(int panels) { return std::max(1, kRows / panels); }
// Up to so many rows wait for the weights, and are computed with several panels at once.
constexpr int kFewRows = max_rows(2);

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
    const Target<Out> to{out + feature, N, N - feature, bias == nullptr ? nullptr : bias + feature, nullptr, true, true};
    tile_of<X, W, PANELS, false, std::min(kFewRows, max_rows(PANELS))>(rows, x, K, packed + panel * K * kPanel,
                                                                        K / kDepth<W>, to);
  }

  // Tiles [begin, end) times one panel.
  void many(int64_t begin, int64_t end, int64_t panel) const {
    if constexpr (std::is_same_v<X, float> && !std::is_same_v<W, float>) {
      if (end - begin >= kTilesToWiden) return many_as<Widened<W>>(begin, end, panel);
    }
    many_as<W>(begin, end, panel);
  }

  // The same, piece by piece of K: the piece of the panel, as it is or widened, stays in the L1 cache.
  template <typename As>
  void many_as(int64_t begin, int64_t end, int64_t panel) const {
    constexpr bool kWiden = !std::is_same_v<As, W>;
    alignas(64) float partial[kBlockTiles * kRows * kPanel];
    alignas(64) As widened[kWiden ? (kPiece<X, As> + kDepth<W>) * kPanel : 1];
    const int64_t feature = panel * kPanel;
    // Pieces of about the same length.
    const int64_t pieces = (K + kPiece<X, As> - 1) / kPiece<X, As>;
    const int64_t most = (K / kDepth<W> + pieces - 1) / pieces * kDepth<W>;
    for (int64_t k = 0; k < K; k += most) {
      const int64_t piece = std::min(most, K - k), groups = piece / kDepth<W>;
      const W* weights = packed + (panel * K + k) * kPanel;
      const As* multiplied;
      if constexpr (kWiden) widen_panel(weights, groups, widened), multiplied = widened;
      else multiplied = weights;
      int64_t ahead = 0;
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t row = first_row(tile, rows), count = first_row(tile + 1, rows) - row;
        Target<Out> to{out + row * N + feature, N, N - feature, bias == nullptr ? nullptr : bias + feature,
                       partial + (tile - begin) * kRows * kPanel, k == 0, k + piece == K};
        // The next piece lies behind this one. Each of the tiles asks for its share of it.
        to.ahead_groups = (groups - ahead + end - tile - 1) / (end - tile);
        to.ahead = weights + (groups + ahead) * kDepth<W> * kPanel;
        ahead += to.ahead_groups;
        tile_of<X, As, 1, true, kRows>(count, x + (tile * K + k) * kRows, K, multiplied, groups, to);
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
      if (rows <= max_rows(4) && left >= 4) few<4>(panel), panel += 4;
      else if (left >= 2) few<2>(panel), panel += 2;
      else few<1>(panel), panel += 1;
    }
  }
};

}  // namespace gridwork
