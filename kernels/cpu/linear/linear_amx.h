// Multiplies rows by packed weights on AMX, and finishes the sums: plain outputs, or gated activations.
#pragma once

#include <algorithm>

#include "common/amx.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "common/thread_pool.h"
#include "rowwise/activations.h"

namespace gridwork {

// Output features of a panel, whose weights are contiguous.
constexpr int64_t kPanel = 2 * kLanes;

#if defined(GRIDWORK_AMX)
// Sums of two tiles of rows with one panel.
constexpr int64_t kAmxSums = 2 * kAmxRows * kPanel;

GRIDWORK_INLINE void store_panel(float* to, Vec first, Vec second) { store(to, first), store(to + kLanes, second); }
GRIDWORK_INLINE void store_panel(bf16* to, Vec first, Vec second) {
  _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

// A column of the product is one panel; its sums are outputs.
template <typename Out>
struct PanelColumns {
  static constexpr int kPanels = 1;
  const bf16* packed;
  const float* bias;
  Out* out;      // [rows, N]
  int64_t K, N;  // K: a multiple of 2 * kUnitPairs
  static_assert(kPanel == 2 * kAmxLanes);

  // Weights of the column's only panel from k on.
  const bf16* weights(int64_t panel, int, int64_t k) const { return packed + (panel * K + k) * kPanel; }

  // Adds the bias to the sums [rows, kPanel] and writes them to the output.
  void finish(int64_t row, int64_t rows, int64_t panel, const float* sums) const {
    const int64_t feature = panel * kPanel, left = N - feature;
    Vec more[2] = {zero(), zero()};
    if (bias != nullptr) {
      more[0] = load_some(bias + feature, left), more[1] = load_some(bias + feature + kLanes, left - kLanes);
    }
    for (int64_t r = 0; r < rows; ++r) {
      Out* to = out + (row + r) * N + feature;
      const Vec first = add(load(sums + r * kPanel), more[0]), second = add(load(sums + r * kPanel + kLanes), more[1]);
      if (left >= kPanel) {
        store_panel(to, first, second);
      } else {
        store_some(to, first, left);
        if (left > kLanes) store_some(to + kLanes, second, left - kLanes);
      }
    }
  }
};

// A column of the product is two panels: gates, and the features that their activations are multiplied by.
template <typename F>
struct GatedColumns {
  static constexpr int kPanels = 2;
  const bf16* packed;
  const float* bias;
  bf16* out;         // [rows, width]
  int64_t K, width;  // width: a multiple of kPanel
  F activation;

  const bf16* weights(int64_t column, int up, int64_t k) const {
    return packed + ((column + up * (width / kPanel)) * K + k) * kPanel;
  }

  // sums: of the gates; the other panel's sums follow kAmxSums values later.
  void finish(int64_t row, int64_t rows, int64_t column, const float* sums) const {
    const int64_t feature = column * kPanel;
    Vec more[2][2];
    for (int up = 0; up < 2; ++up) {
      for (int half = 0; half < 2; ++half) {
        more[up][half] = bias != nullptr ? load(bias + up * width + feature + half * kLanes) : zero();
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      Vec result[2];
      for (int half = 0; half < 2; ++half) {
        const float* at = sums + r * kPanel + half * kLanes;
        const Vec gate = rounded(add(load(at), more[0][half]), packed);
        const Vec up = rounded(add(load(at + kAmxSums), more[1][half]), packed);
        result[half] = gated<bf16>(gate, up, activation);
      }
      store_panel(out + (row + r) * width + feature, result[0], result[1]);
    }
  }
};

// Rows of x as tiles with equal numbers of rows: a single tile, or pairs of tiles. The last tiles may overlap the
// previous ones and compute some rows again.
class AmxRows {
 public:
  // x: [rows, K].  K: a multiple of 2 * kAmxPairs.  copies: whether rows may be copied, into memory of which the thread
  // has one instance.
  AmxRows(const bf16* x, int64_t rows, int64_t K, bool copies = true) : x_(x), rows_(rows), K_(K) {
    const int64_t tiles = (rows + kAmxRows - 1) / kAmxRows;
    pairs_ = (tiles + 1) / 2;
    in_pair_ = std::min<int64_t>(tiles, 2);
    tile_rows_ = (rows + pairs_ * in_pair_ - 1) / (pairs_ * in_pair_);
    if (copies && pairs_ > 1 && K * sizeof(bf16) % kConflictBytes == 0) copy_in_reading_order();
  }

  int64_t pairs() const { return pairs_; }
  int64_t in_pair() const { return in_pair_; }
  int64_t tile_rows() const { return tile_rows_; }
  int64_t first_row(int64_t tile) const { return std::min(tile * tile_rows_, rows_ - tile_rows_); }
  // Values of a tile from k on. Rows are `stride` bytes apart.
  const bf16* at(int64_t tile, int64_t k) const {
    return is_copied_ ? x_ + tile * tile_rows_ * K_ + k * tile_rows_ : x_ + first_row(tile) * K_ + k;
  }
  int64_t stride() const { return (is_copied_ ? kStep : K_) * static_cast<int64_t>(sizeof(bf16)); }
  // Distance from one tile product's values to the next, in values.
  int64_t step() const { return is_copied_ ? tile_rows_ * kStep : kStep; }

 private:
  static constexpr int64_t kStep = 2 * kAmxPairs;
  // Rows that are a multiple of this many bytes apart map to the same set of the L1 cache.
  static constexpr int64_t kConflictBytes = 4096;

  // Copies x into the calling thread's memory, in the order of reading: [tiles, K / kStep, tile_rows, kStep].
  void copy_in_reading_order() {
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
    x_ = copy, is_copied_ = true;
  }

  const bf16* x_;
  int64_t rows_, K_, pairs_, in_pair_, tile_rows_;
  bool is_copied_ = false;
};

// Computes the product on AMX. Tile registers 0 to 3 hold sums of up to two tiles of rows with the two tiles of a
// panel's weights, 4 and 5 rows of x, 6 and 7 weights.
template <typename Columns>
class AmxProduct {
 public:
  AmxProduct(const AmxRows& x, const Columns& columns) : x_(x), columns_(columns) {
    for (int tile = 0; tile < 6; ++tile) shape_.set(tile, x.tile_rows(), 64);
    for (int tile = 6; tile < 8; ++tile) shape_.set(tile, kAmxPairs, 64);
    const int64_t bytes = std::min(kAmxPiece, columns.K) * 64;  // of a pair of tiles, and of a panel
    const int64_t most = std::max<int64_t>(1, kRowsBytes / bytes), blocks = (x.pairs() + most - 1) / most;
    block_pairs_ = (x.pairs() + blocks - 1) / blocks;
    columns_together_ = whole() ? std::max<int64_t>(1, kColumnsBytes / (bytes * Columns::kPanels)) : kColumns;
  }

  // Multiplies all rows by columns [begin, end).
  void run(int64_t begin, int64_t end) const {
    thread_local Scratch scratch;
    float* sums = scratch.floats(static_cast<size_t>((whole() ? 1 : kColumns * block_pairs_) * kColumnSums));
    configure_tiles(shape_);
    for (int64_t column = begin; column < end; column += columns_together_) {
      some(column, std::min(end, column + columns_together_), sums);
    }
    release_tiles();
  }

 private:
  // Maximum length of a piece of K.
  static constexpr int64_t kAmxPiece = 2048;
  // Bytes that should stay in a core's L2 cache: a block of rows, and the columns that a block is multiplied by before
  // the next block.
  static constexpr int64_t kRowsBytes = 1200 << 10, kColumnsBytes = 400 << 10;
  // Columns that are multiplied together where K is cut into pieces.
  static constexpr int64_t kColumns = 8;
  // Prefetch distance for few rows, in bytes of weights.
  static constexpr int64_t kAhead = 4096;
  static constexpr int64_t kStep = 2 * kAmxPairs;
  static constexpr int64_t kStepBytes = kStep * kPanel * static_cast<int64_t>(sizeof(bf16));
  static constexpr int64_t kColumnSums = Columns::kPanels * kAmxSums;

  // Weights to prefetch: `lines` cache lines with each step.
  struct Prefetch {
    const char* at;
    int64_t lines;
  };

  bool whole() const { return columns_.K <= kAmxPiece; }

  void some(int64_t begin, int64_t end, float* all_sums) const {
    for (int64_t first = 0; first < x_.pairs(); first += block_pairs_) {
      const int64_t pairs = std::min(block_pairs_, x_.pairs() - first);
      for (int64_t k = 0; k < columns_.K; k += kAmxPiece) {
        for (int64_t column = begin; column < end; ++column) {
          for (int64_t pair = 0; pair < pairs; ++pair) {
            float* sums = whole() ? all_sums : all_sums + ((column - begin) * block_pairs_ + pair) * kColumnSums;
            const int64_t tile = (first + pair) * x_.in_pair();
            for (int panel = 0; panel < Columns::kPanels; ++panel) {
              const Prefetch none{nullptr, 0};
              const Prefetch ahead = first == 0 ? prefetch_of(begin, end, column, panel, k, pair) : none;
              const bf16* weights = columns_.weights(column, panel, k);
              float* to = sums + panel * kAmxSums;
              if (x_.pairs() > 1) multiply<2, _MM_HINT_T1>(tile, weights, k, to, ahead);
              else if (x_.in_pair() == 2) multiply<2, _MM_HINT_T0>(tile, weights, k, to, ahead);
              else multiply<1, _MM_HINT_T0>(tile, weights, k, to, ahead);
            }
            if (k + kAmxPiece < columns_.K) continue;
            columns_.finish(x_.first_row(tile), x_.tile_rows(), column, sums);
            if (x_.in_pair() == 2) columns_.finish(x_.first_row(tile + 1), x_.tile_rows(), column, sums + kAmxSums / 2);
          }
        }
      }
    }
  }

  // Few rows are limited by memory, and prefetch a short distance ahead. Of many rows, the first block prefetches the
  // panel that is read next. With prefetches by every block, a tile product took 11 to 15 ns in place of 10 to 13, as
  // the weights were in the L2 cache already. A core gets 11 to 17 GB/s from memory however it prefetches.
  Prefetch prefetch_of(int64_t begin, int64_t end, int64_t column, int panel, int64_t k, int64_t pair) const {
    if (x_.pairs() == 1) {
      return {reinterpret_cast<const char*>(columns_.weights(column, panel, k)) + kAhead, kStepBytes / 64};
    }
    const int64_t steps = (std::min(kAmxPiece, columns_.K - k) + kStep - 1) / kStep;
    const int64_t pairs = std::min(block_pairs_, x_.pairs()), lines = (kStepBytes / 64 + pairs - 1) / pairs;
    const bool piece_ends = column + 1 == end && k + kAmxPiece < columns_.K;
    const bf16* next = piece_ends ? columns_.weights(begin, panel, k + kAmxPiece)
                                  : columns_.weights(column + 1, panel, column + 1 == end ? 0 : k);
    return {reinterpret_cast<const char*>(next) + pair * steps * lines * 64, lines};
  }

  // Multiplies one or two tiles of rows, from `tile` on, by a panel's weights, from k to the end of the piece.
  template <int TILES, _mm_hint HINT>
  void multiply(int64_t tile, const bf16* weights, int64_t k, float* sums, Prefetch ahead) const {
    constexpr int64_t kRowBytes = kPanel * static_cast<int64_t>(sizeof(float));
    if (k == 0) {
      zero_tile<0>(), zero_tile<1>();
      if constexpr (TILES == 2) zero_tile<2>(), zero_tile<3>();
    } else {
      load_tile<0>(sums, kRowBytes), load_tile<1>(sums + kAmxLanes, kRowBytes);
      if constexpr (TILES == 2) {
        load_tile<2>(sums + kAmxSums / 2, kRowBytes), load_tile<3>(sums + kAmxSums / 2 + kAmxLanes, kRowBytes);
      }
    }
    const int64_t end = std::min(columns_.K, k + kAmxPiece), stride = x_.stride(), step = x_.step();
    const bf16 *x = x_.at(tile, k), *second = x_.at(tile + TILES - 1, k);
    constexpr int64_t kPairBytes = kPanel * 2 * static_cast<int64_t>(sizeof(bf16));
    for (int64_t at = k; at < end; at += kStep, weights += kStep * kPanel, x += step, second += step) {
      for (int64_t line = 0; line < ahead.lines; ++line, ahead.at += 64) _mm_prefetch(ahead.at, HINT);
      load_tile<4>(x, stride);
      load_tile<6>(weights, kPairBytes);
      add_tile_products<0, 4, 6>();
      load_tile<7>(weights + 2 * kAmxLanes, kPairBytes);
      add_tile_products<1, 4, 7>();
      if constexpr (TILES == 2) {
        load_tile<5>(second, stride);
        add_tile_products<2, 5, 6>();
        add_tile_products<3, 5, 7>();
      }
    }
    store_tile<0>(sums, kRowBytes), store_tile<1>(sums + kAmxLanes, kRowBytes);
    if constexpr (TILES == 2) {
      store_tile<2>(sums + kAmxSums / 2, kRowBytes), store_tile<3>(sums + kAmxSums / 2 + kAmxLanes, kRowBytes);
    }
  }

  AmxRows x_;
  TileConfig shape_;
  Columns columns_;
  int64_t block_pairs_;       // pairs of tiles in a block of rows
  int64_t columns_together_;  // columns that a block is multiplied by before the next block
};

// Multiplies one or two rows with vector instructions, with AMX's order of summation and its rounding. Results are
// equal bit for bit, and a row's result does not depend on the number of rows. So few rows are limited by memory, which
// vector loads read faster than tile loads.
template <typename Out>
class FewRowsProduct {
 public:
  static constexpr int64_t kMaxRows = 2;

  // x: [rows, columns.K]
  FewRowsProduct(const bf16* x, int64_t rows, const PanelColumns<Out>& columns)
      : x_(x), rows_(rows), columns_(columns) {}

  // Multiplies all rows by panels [begin, end).
  void run(int64_t begin, int64_t end) const {
    if (rows_ == 1) panels<1, 4>(begin, end);
    else panels<2, 2>(begin, end);
  }

 private:
  static constexpr int64_t kStep = 2 * kAmxPairs;
  static constexpr int64_t kPair = 2 * kPanel;  // weights of a panel for one pair of k
  // Prefetch distance, in pairs of k.
  static constexpr int64_t kAheadPairs = 16;

  template <int ROWS, int PANELS>
  void panels(int64_t begin, int64_t end) const {
    alignas(64) float sums[PANELS * ROWS * kPanel];
    for (; begin + PANELS <= end; begin += PANELS) {
      {
        const FlushDenormals mode;
        some<ROWS, PANELS>(begin, sums);
      }
      for (int64_t panel = 0; panel < PANELS; ++panel) {
        columns_.finish(0, ROWS, begin + panel, sums + panel * ROWS * kPanel);
      }
    }
    if constexpr (PANELS > 1) panels<ROWS, PANELS / 2>(begin, end);
  }

  // sums: [PANELS, ROWS, kPanel].  It is not inlined, so that no computation moves before the change of rounding mode.
  template <int ROWS, int PANELS>
  __attribute__((noinline)) void some(int64_t panel, float* sums) const {
    constexpr int kVecs = 2 * PANELS;
    const int64_t K = columns_.K, stride = K * kPanel;
    const bf16* weights = columns_.weights(panel, 0, 0);
    Vec sum[ROWS][kVecs];
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { sum[r][v] = zero(); });
    });
    for (int64_t k = 0; k < K; k += kStep) {
      // The next panels begin after the end of these.
      const bool last = k + 2 * kAheadPairs >= K;
      const int64_t ahead = kAheadPairs * kPair + (last ? (PANELS - 1) * stride : 0);
      Vec even[ROWS][kVecs], odd[ROWS][kVecs];
      unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
        unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { even[r][v] = zero(), odd[r][v] = zero(); });
      });
#pragma GCC unroll 1
      for (int64_t pair = 0; pair < kAmxPairs; ++pair) {
        const bf16* at = weights + k * kPanel + pair * kPair;
        Vec x_even[ROWS], x_odd[ROWS];
        unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
          const bf16* x = x_ + r * K + k + 2 * pair;
          x_even[r] = set1(widen(x[0])), x_odd[r] = set1(widen(x[1]));
        });
        unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
          const bf16* of = at + v / 2 * stride + v % 2 * 2 * kLanes;
          _mm_prefetch(of + ahead, _MM_HINT_T0);
          const Vec w_even = load_even(of), w_odd = load_odd(of);
          unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
            even[r][v] = fma(x_even[r], w_even, even[r][v]);
            odd[r][v] = fma(x_odd[r], w_odd, odd[r][v]);
          });
        });
      }
      unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
        unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA { sum[r][v] = add(sum[r][v], add(even[r][v], odd[r][v])); });
      });
    }
    unroll<ROWS>([&](auto r) GRIDWORK_INLINE_LAMBDA {
      unroll<kVecs>([&](auto v) GRIDWORK_INLINE_LAMBDA {
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
