// The product of rows and packed weights on the matrix unit (AMX), and what it is made into: outputs as they are, or
// gates times their factors.
#pragma once

#include <algorithm>

#include "activations.h"
#include "matrix_unit.h"
#include "scratch.h"
#include "simd.h"
#include "thread_pool.h"

namespace gridwork {

// Output features whose weights lie together.
constexpr int64_t kPanel = 2 * kLanes;

#if defined(GRIDWORK_MATRIX_UNIT)
// What the matrix unit multiplies with at once: the two halves of a panel.
template <typename Out>
struct PanelColumns {
  const bf16* packed;
  const float* bias;
  Out* out;      // [rows, N]
  int64_t K, N;  // K: a multiple of 2 * kUnitPairs
  static_assert(kPanel == 2 * kUnitLanes);

  const bf16* weights(int64_t panel, int half, int64_t k) const {
    return packed + (panel * K + k) * kPanel + half * 2 * kUnitLanes;
  }
  const bf16* next(int64_t panel, int64_t k) const { return weights(panel + 1, 0, k); }

  // Sums of so many rows, [rows, kPanel], to their place.
  void finish(int64_t row, int64_t rows, int64_t panel, const float* sums) const {
    const int64_t feature = panel * kPanel, left = N - feature;
    Vec more[2] = {zero(), zero()};
    if (bias != nullptr) {
      more[0] = load_some(bias + feature, left), more[1] = load_some(bias + feature + kLanes, left - kLanes);
    }
    for (int64_t r = 0; r < rows; ++r) {
      Out* to = out + (row + r) * N + feature;
      store_some(to, add(load(sums + r * kPanel), more[0]), left);
      if (left > kLanes) store_some(to + kLanes, add(load(sums + r * kPanel + kLanes), more[1]), left - kLanes);
    }
  }
};

// Half a panel of gates and the half panel that they are multiplied with.
template <typename F>
struct GatedColumns {
  const bf16* packed;
  const float* bias;
  bf16* out;         // [rows, width]
  int64_t K, width;  // width: a multiple of kPanel
  F activation;

  const bf16* weights(int64_t column, int up, int64_t k) const {
    return packed + ((column / 2 + up * (width / kPanel)) * K + k) * kPanel + column % 2 * 2 * kUnitLanes;
  }
  // A whole panel: of gates while the first half of one is computed, else of the others.
  const bf16* next(int64_t column, int64_t k) const { return weights(column / 2 * 2 + 2, column % 2, k); }

  void finish(int64_t row, int64_t rows, int64_t column, const float* sums) const {
    const int64_t feature = column * kUnitLanes;
    Vec more[2] = {zero(), zero()};
    if (bias != nullptr) more[0] = load(bias + feature), more[1] = load(bias + width + feature);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec gate = rounded(add(load(sums + r * kPanel), more[0]), packed);
      const Vec up = rounded(add(load(sums + r * kPanel + kLanes), more[1]), packed);
      store(out + (row + r) * width + feature, gated<bf16>(gate, up, activation));
    }
  }
};

// Rows of x as tiles of the unit: all of the same number of rows, one or in pairs. The last ones may begin earlier and
// compute rows again.
class UnitRows {
 public:
  // x: [rows, K].  K: a multiple of 2 * kUnitPairs.  copies: whether rows may be copied, into memory that the thread has
  // once.
  UnitRows(const bf16* x, int64_t rows, int64_t K, bool copies = true) : x_(x), rows_(rows), K_(K) {
    const int64_t tiles = (rows + kUnitRows - 1) / kUnitRows;
    pairs_ = (tiles + 1) / 2;
    in_pair_ = std::min<int64_t>(tiles, 2);
    tile_rows_ = (rows + pairs_ * in_pair_ - 1) / (pairs_ * in_pair_);
    if (copies && pairs_ > 1 && K * sizeof(bf16) % kCrowded == 0) put_together();
  }

  int64_t pairs() const { return pairs_; }
  int64_t in_pair() const { return in_pair_; }
  int64_t tile_rows() const { return tile_rows_; }
  int64_t first_row(int64_t tile) const { return std::min(tile * tile_rows_, rows_ - tile_rows_); }
  // A tile's values from k on; its rows are `stride` bytes apart.
  const bf16* at(int64_t tile, int64_t k) const {
    return together_ ? x_ + tile * tile_rows_ * K_ + k * tile_rows_ : x_ + first_row(tile) * K_ + k;
  }
  int64_t stride() const { return (together_ ? kStep : K_) * static_cast<int64_t>(sizeof(bf16)); }
  // Between one product's values and the next one's.
  int64_t step() const { return together_ ? tile_rows_ * kStep : kStep; }

 private:
  static constexpr int64_t kStep = 2 * kUnitPairs;
  // Rows a multiple of so many bytes apart share one set of places in the L1 cache.
  static constexpr int64_t kCrowded = 4096;

  // A copy in the calling thread's memory in the order of reading: [tiles, K / kStep, tile_rows, kStep].
  void put_together() {
    thread_local Scratch scratch;
    const int64_t tiles = pairs_ * in_pair_, rows = tile_rows_, K = K_;
    bf16* copy = reinterpret_cast<bf16*>(scratch.floats(static_cast<size_t>(tiles * rows * K + 1) / 2));
    parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const bf16* from = x_ + first_row(tile) * K;
        bf16* to = copy + tile * rows * K;
        for (int64_t k = 0; k < K; k += kStep) {
          for (int64_t row = 0; row < rows; ++row, to += kStep) std::copy_n(from + row * K + k, kStep, to);
        }
      }
    });
    x_ = copy, together_ = true;
  }

  const bf16* x_;
  int64_t rows_, K_, pairs_, in_pair_, tile_rows_;
  bool together_ = false;
};

// The product on the matrix unit. Tiles 0 to 3 are sums of up to two times 16 rows and the two tiles of weights of a
// column, 4 and 5 the rows of x, 6 and 7 the weights.
template <typename Columns>
class UnitProduct {
 public:
  UnitProduct(const UnitRows& x, const Columns& columns) : x_(x), columns_(columns) {
    for (int tile = 0; tile < 6; ++tile) shape_.set(tile, x.tile_rows(), 64);
    for (int tile = 6; tile < 8; ++tile) shape_.set(tile, kUnitPairs, 64);
  }

  // All rows times columns [begin, end).
  void run(int64_t begin, int64_t end) const {
    thread_local Scratch scratch;
    float* partial = scratch.floats(static_cast<size_t>(kMostColumns * kBlockPairs * kSums));
    use_unit(shape_);
    for (int64_t column = begin; column < end; column += kMostColumns) {
      some(column, std::min(end, column + kMostColumns), partial);
    }
    release_unit();
  }

 private:
  // Columns that are taken together, so that each is read once for many rows.
  static constexpr int64_t kMostColumns = 8;
  // Rows whose piece of x shall stay in a core's L2 cache, as pairs of tiles.
  static constexpr int64_t kBlockPairs = 4;
  static constexpr int64_t kUnitPiece = 2048;
  // Bytes of weights between those that are used and those that few rows ask for.
  static constexpr int64_t kAhead = 4096;
  static constexpr int64_t kStep = 2 * kUnitPairs;
  static constexpr int64_t kSums = 2 * kUnitRows * kPanel;
  static constexpr int64_t kStepBytes = kStep * kPanel * static_cast<int64_t>(sizeof(bf16));

  // Weights that will be needed later: so many lines of them with each step.
  struct Ahead {
    const char* at;
    int64_t lines;
  };

  void some(int64_t begin, int64_t end, float* partial) const {
    for (int64_t first = 0; first < x_.pairs(); first += kBlockPairs) {
      const int64_t pairs = std::min(kBlockPairs, x_.pairs() - first);
      for (int64_t k = 0; k < columns_.K; k += kUnitPiece) {
        for (int64_t column = begin; column < end; ++column) {
          for (int64_t pair = 0; pair < pairs; ++pair) {
            float* sums = partial + ((column - begin) * kBlockPairs + pair) * kSums;
            const Ahead ahead = ahead_of(column, k, pair, pairs);
            const int64_t tile = (first + pair) * x_.in_pair();
            if (x_.pairs() > 1) multiply<2, _MM_HINT_T1>(tile, column, k, sums, ahead);
            else if (x_.in_pair() == 2) multiply<2, _MM_HINT_T0>(tile, column, k, sums, ahead);
            else multiply<1, _MM_HINT_T0>(tile, column, k, sums, ahead);
          }
        }
      }
    }
  }

  // Few rows wait for memory: they ask for what lies a little behind. Many ask, together, for the next panel, which is
  // needed later.
  Ahead ahead_of(int64_t column, int64_t k, int64_t pair, int64_t pairs) const {
    if (x_.pairs() == 1) {
      return {reinterpret_cast<const char*>(columns_.weights(column, 0, k)) + kAhead, kStepBytes / 64};
    }
    const int64_t steps = (std::min(kUnitPiece, columns_.K - k) + kStep - 1) / kStep;
    const int64_t lines = (kStepBytes / 64 + pairs - 1) / pairs;
    return {reinterpret_cast<const char*>(columns_.next(column, k)) + pair * steps * lines * 64, lines};
  }

  // Tiles of rows, `tile` or it and the next one, times a piece of K of a column.
  template <int TILES, _mm_hint HINT>
  void multiply(int64_t tile, int64_t column, int64_t k, float* sums, Ahead ahead) const {
    constexpr int64_t kRowBytes = kPanel * static_cast<int64_t>(sizeof(float));
    const int64_t K = columns_.K;
    if (k == 0) {
      zero_tile<0>(), zero_tile<1>();
      if constexpr (TILES == 2) zero_tile<2>(), zero_tile<3>();
    } else {
      load_tile<0>(sums, kRowBytes), load_tile<1>(sums + kUnitLanes, kRowBytes);
      if constexpr (TILES == 2) {
        load_tile<2>(sums + kSums / 2, kRowBytes), load_tile<3>(sums + kSums / 2 + kUnitLanes, kRowBytes);
      }
    }
    const int64_t end = std::min(K, k + kUnitPiece), stride = x_.stride(), step = x_.step();
    const bf16 *x = x_.at(tile, k), *second = x_.at(tile + TILES - 1, k);
    const bf16 *a = columns_.weights(column, 0, k), *b = columns_.weights(column, 1, k);
    constexpr int64_t kPairBytes = kPanel * 2 * static_cast<int64_t>(sizeof(bf16));
    for (int64_t at = k; at < end; at += kStep, a += kStep * kPanel, b += kStep * kPanel, x += step, second += step) {
      for (int64_t line = 0; line < ahead.lines; ++line, ahead.at += 64) _mm_prefetch(ahead.at, HINT);
      load_tile<4>(x, stride);
      load_tile<6>(a, kPairBytes);
      add_tile_products<0, 4, 6>();
      load_tile<7>(b, kPairBytes);
      add_tile_products<1, 4, 7>();
      if constexpr (TILES == 2) {
        load_tile<5>(second, stride);
        add_tile_products<2, 5, 6>();
        add_tile_products<3, 5, 7>();
      }
    }
    store_tile<0>(sums, kRowBytes), store_tile<1>(sums + kUnitLanes, kRowBytes);
    if constexpr (TILES == 2) {
      store_tile<2>(sums + kSums / 2, kRowBytes), store_tile<3>(sums + kSums / 2 + kUnitLanes, kRowBytes);
    }
    if (end < K) return;
    columns_.finish(x_.first_row(tile), x_.tile_rows(), column, sums);
    if constexpr (TILES == 2) columns_.finish(x_.first_row(tile + 1), x_.tile_rows(), column, sums + kSums / 2);
  }

  UnitRows x_;
  UnitShape shape_;
  Columns columns_;
};

// The product of one row or two by vectors, with the unit's order of sums and its rounding: the same results to the bit,
// so that a row does not depend on how many there are. So few wait for memory, which vectors read faster than tiles do.
template <typename Out>
class FewRowsProduct {
 public:
  static constexpr int64_t kMostRows = 2;

  // x: [rows, columns.K]
  FewRowsProduct(const bf16* x, int64_t rows, const PanelColumns<Out>& columns)
      : x_(x), rows_(rows), columns_(columns) {}

  // All rows times panels [begin, end).
  void run(int64_t begin, int64_t end) const {
    if (rows_ == 1) panels<1, 4>(begin, end);
    else panels<2, 2>(begin, end);
  }

 private:
  static constexpr int64_t kStep = 2 * kUnitPairs;
  static constexpr int64_t kPair = 2 * kPanel;  // weights of a panel for one pair of k
  // Pairs of k whose weights are asked for before they are used.
  static constexpr int64_t kAheadPairs = 16;

  template <int ROWS, int PANELS>
  void panels(int64_t begin, int64_t end) const {
    alignas(64) float sums[PANELS * ROWS * kPanel];
    for (; begin + PANELS <= end; begin += PANELS) {
      {
        const SmallAsZero mode;
        some<ROWS, PANELS>(begin, sums);
      }
      for (int64_t panel = 0; panel < PANELS; ++panel) {
        columns_.finish(0, ROWS, begin + panel, sums + panel * ROWS * kPanel);
      }
    }
    if constexpr (PANELS > 1) panels<ROWS, PANELS / 2>(begin, end);
  }

  // sums: [PANELS, ROWS, kPanel].  A function of its own, so that nothing in it is computed before small numbers are taken
  // for zero.
  template <int ROWS, int PANELS>
  __attribute__((noinline)) void some(int64_t panel, float* sums) const {
    constexpr int kVecs = 2 * PANELS;
    const int64_t K = columns_.K, stride = K * kPanel;
    const bf16* weights = columns_.weights(panel, 0, 0);
    Vec sum[ROWS][kVecs];
    each<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      each<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { sum[r][v] = zero(); });
    });
    for (int64_t k = 0; k < K; k += kStep) {
      // What lies behind the end of these panels is the beginning of the next ones.
      const bool last = k + 2 * kAheadPairs >= K;
      const int64_t ahead = kAheadPairs * kPair + (last ? (PANELS - 1) * stride : 0);
      Vec even[ROWS][kVecs], odd[ROWS][kVecs];
      each<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
        each<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { even[r][v] = zero(), odd[r][v] = zero(); });
      });
#pragma GCC unroll 1
      for (int64_t pair = 0; pair < kUnitPairs; ++pair) {
        const bf16* at = weights + k * kPanel + pair * kPair;
        Vec x_even[ROWS], x_odd[ROWS];
        each<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
          const bf16* x = x_ + r * K + k + 2 * pair;
          x_even[r] = set1(widen(x[0])), x_odd[r] = set1(widen(x[1]));
        });
        each<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
          const bf16* of = at + v / 2 * stride + v % 2 * 2 * kLanes;
          _mm_prefetch(of + ahead, _MM_HINT_T0);
          const Vec w_even = load_even(of), w_odd = load_odd(of);
          each<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
            even[r][v] = fma(x_even[r], w_even, even[r][v]);
            odd[r][v] = fma(x_odd[r], w_odd, odd[r][v]);
          });
        });
      }
      each<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
        each<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { sum[r][v] = add(sum[r][v], add(even[r][v], odd[r][v])); });
      });
    }
    each<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      each<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
        store(sums + (v / 2 * ROWS + r) * kPanel + v % 2 * kLanes, sum[r][v]);
      });
    });
  }

  const bf16* x_;
  int64_t rows_;
  PanelColumns<Out> columns_;
};
#endif

}  // namespace gridwork
