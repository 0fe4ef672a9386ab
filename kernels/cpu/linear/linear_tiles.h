// Multiplies rows by packed weights with vector instructions, one tile of rows at a time. linear.cpp describes the
// layout of packed weights.
#pragma once

#include <algorithm>

#include "common/row_products.h"
#include "common/simd.h"
#include "linear/linear_amx.h"

namespace gridwork {

// Rows of a tile: the maximum whose sums with one panel fit into the registers.
constexpr int kRows = kLanes == 16 ? 12 : 6;
// Tiles of a block. A block is multiplied by all panels before the next block, and stays in a core's L2 cache.
constexpr int64_t kBlockTiles = 96 / kRows;
// Maximum length of a piece of K: a panel's piece, a tile's rows of type X and their sums then stay in the L1 cache.
template <typename X, typename W>
constexpr int64_t kPiece = (26 << 10) / (kPanel * sizeof(W) + kRows * sizeof(X));

// Prefetch distance for few rows, in bytes, in each of the panels that are multiplied together: with more concurrent
// streams, the hardware prefetcher does more of the work. 2 or 8 KiB, or the second cache, gave 0.9 to 1.0 times the
// speed (Emerald Rapids); one panel at a time was as slow as no prefetch. On Zen 3, 4 to 16 KiB gave 0.94 to 1.08
// times.
constexpr int64_t kAhead = 4096;
// Concurrent prefetch streams for many rows, for the same reason. Four or eight were as fast, or slower (Emerald
// Rapids).
constexpr int64_t kStreams = 2;

// K is padded to a multiple of this.
template <typename W>
constexpr int64_t kMultiple = kDepth<W>;
#if defined(GRIDWORK_AMX)
template <>
constexpr int64_t kMultiple<bf16> = 2 * kAmxPairs;
#endif

// Weights of type W that were converted to float32 before the multiplication: kDepth<W> contiguous vectors for each
// vector of packed weights.
template <typename W>
struct Widened {
  float value;
};
template <typename W>
constexpr int64_t kDepth<Widened<W>> = kDepth<W>;
// The type of the packed weights that W was converted from.
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

// Minimum number of tiles for which converting a panel once to float32 pays. Fewer tiles convert weights as they use
// them. On Zen 4 the conversion made no difference; on Zen 1 it gave 1.1 times the speed.
constexpr int64_t kTilesToWiden = 5;

// Converts `groups` groups of kDepth k of a panel to float32.
template <typename W>
void widen_panel(const W* from, int64_t groups, Widened<W>* to) {
  for (int64_t i = 0; i < groups * kPanel * kDepth<W>; i += kLanes * kDepth<W>) {
    unroll<kDepth<W>>([&](auto d) GRIDWORK_INLINE_LAMBDA { store(&to[i].value + d * kLanes, operand(from + i, d)); });
  }
}

// The start values and the destination of a tile's sums.
template <typename Out>
struct Target {
  Out* out;          // at the first row and feature
  int64_t stride;    // between rows
  int64_t features;  // remaining ones, from the first one on
  const float* bias; // of the first feature, or null
  float* partial;    // [rows, kPanel]: sums over the previous pieces of K
  bool first, last;  // whether this is the first piece of K, and the last
  // Weights to prefetch while this tile is computed, and their number of groups of k.
  const void* ahead = nullptr;
  int64_t ahead_groups = 0;

  // Prefetches the k-th of these groups, of BYTES each.
  template <int64_t BYTES>
  GRIDWORK_INLINE void prefetch(int64_t k) const {
    constexpr int64_t kLines = BYTES / 64;
    const int64_t apart = (ahead_groups * kLines + kStreams - 1) / kStreams;
    for (int64_t line = k * kLines; line < (k + 1) * kLines; ++line) {
      _mm_prefetch(static_cast<const char*>(ahead) + (line % kStreams * apart + line / kStreams) * 64, _MM_HINT_T1);
    }
  }
};

// Multiplies ROWS rows of x by PANELS consecutive panels, over `count` groups of kDepth k.
//   x: [ROWS, K], or, if TILED, in the layout of `in_tiles`.  w: the first panel at the first k.
// It is not inlined: one function that contains all variants takes minutes to compile.
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
      // The next panels begin after the end of these.
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

// Calls `tile` for `rows` rows, with their number as a constant.
template <typename X, typename W, int PANELS, bool TILED, int MAX, typename Out>
void tile_of(int64_t rows, const X* x, int64_t K, const W* w, int64_t count, const Target<Out>& to) {
  if (rows == MAX) return tile<X, W, MAX, PANELS, TILED>(x, K, w, count, to);
  if constexpr (MAX > 1) tile_of<X, W, PANELS, TILED, MAX - 1>(rows, x, K, w, count, to);
}

// Maximum number of rows whose sums with `panels` panels fit into the registers.
constexpr int max_rows(int panels) { return std::max(1, kRows / panels); }
// Maximum number of rows that are limited by memory. They are multiplied by several panels at once.
constexpr int kFewRows = max_rows(2);

// Tiles have about the same number of rows: a tile of few rows takes nearly as long as a full one.
int64_t num_tiles(int64_t rows) { return (rows + kRows - 1) / kRows; }
int64_t first_row(int64_t tile, int64_t rows) { return tile * rows / num_tiles(rows); }

template <typename X, typename W, typename Out>
struct Product {
  const X* x;  // [rows, K]; for more than kFewRows rows in the layout of `in_tiles`
  const W* packed;
  const float* bias;
  Out* out;  // [rows, N]
  int64_t rows, K, N;  // K: a multiple of kDepth

  // Multiplies all rows, at most kFewRows, by PANELS panels.
  template <int PANELS>
  void few(int64_t panel) const {
    const int64_t feature = panel * kPanel;
    const Target<Out> to{out + feature, N, N - feature, bias == nullptr ? nullptr : bias + feature, nullptr, true, true};
    tile_of<X, W, PANELS, false, std::min(kFewRows, max_rows(PANELS))>(rows, x, K, packed + panel * K * kPanel,
                                                                        K / kDepth<W>, to);
  }

  // Multiplies tiles [begin, end) by one panel.
  void many(int64_t begin, int64_t end, int64_t panel) const {
    if constexpr (std::is_same_v<X, float> && !std::is_same_v<W, float>) {
      if (end - begin >= kTilesToWiden) return many_as<Widened<W>>(begin, end, panel);
    }
    many_as<W>(begin, end, panel);
  }

  // Multiplies in pieces of K: a piece of the panel, as packed or converted to float32, stays in the L1 cache.
  template <typename As>
  void many_as(int64_t begin, int64_t end, int64_t panel) const {
    constexpr bool kWiden = !std::is_same_v<As, W>;
    alignas(64) float partial[kBlockTiles * kRows * kPanel];
    alignas(64) As widened[kWiden ? (kPiece<X, As> + kDepth<W>) * kPanel : 1];
    const int64_t feature = panel * kPanel;
    // Pieces have about the same length.
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
        // The next piece follows this one in memory. Each tile prefetches its share of it.
        to.ahead_groups = (groups - ahead + end - tile - 1) / (end - tile);
        to.ahead = weights + (groups + ahead) * kDepth<W> * kPanel;
        ahead += to.ahead_groups;
        tile_of<X, As, 1, true, kRows>(count, x + (tile * K + k) * kRows, K, multiplied, groups, to);
      }
    }
  }

  // Multiplies all rows by panels [begin, end).
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
      // Several panels give enough independent sums to hide the latency of multiply-add.
      if (rows <= max_rows(4) && left >= 4) few<4>(panel), panel += 4;
      else if (left >= 2) few<2>(panel), panel += 2;
      else few<1>(panel), panel += 1;
    }
  }
};

}  // namespace gridwork
