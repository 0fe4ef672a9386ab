// Scores and weighted sums of a tile on AMX, for bfloat16 in blocks of kGroup positions, which have AMX's layout of
// keys and values.
#pragma once

#include <algorithm>

#include "attention/attention_problem.h"
#include "attention/few_rows_amx.h"
#include "common/amx.h"
#include "common/scratch.h"

namespace gridwork {

// A thread's use of AMX for consecutive tiles of attention. Without AMX, and for other types, it is not available.
template <typename T>
class AmxAttention {
 public:
  static constexpr bool kAvailable = false;
};

#if defined(GRIDWORK_AMX)
// Tile registers 0 to 3 hold sums, 4 and 5 queries or softmax weights, 6 and 7 keys or values. Values are summed over
// two groups at a time, since a tile product over one group takes as long.
template <>
class AmxAttention<bf16> {
 public:
  static constexpr bool kAvailable = true;
  // Limits of the approximate number of rows of a tile of tokens. Several tile registers of rows reuse keys and copied
  // values; with many more rows, their data leaves the caches.
  static constexpr int64_t kMinRows = 4 * kAmxRows, kMaxRows = 12 * kAmxRows;
  // Positions that one tile product sums values over; they begin at multiples of it.
  static constexpr int64_t kTwoGroups = 2 * kGroup;

  static bool takes(const Problem<bf16>& p) { return p.block_size == kGroup && p.value_size % kAmxLanes == 0; }

  AmxAttention() = default;
  AmxAttention(const AmxAttention&) = delete;
  AmxAttention& operator=(const AmxAttention&) = delete;
  ~AmxAttention() {
    if (in_use_) release_tiles();
  }

  // Must be called before a tile of `rows` rows is computed. All tiles of a thread belong to the same problem.
  void prepare(const Problem<bf16>& p, int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    // Tiles have equal numbers of rows; the last one may overlap the previous one and compute some rows again.
    tiles_ = (rows + kAmxRows - 1) / kAmxRows;
    tile_rows_ = (rows + tiles_ - 1) / tiles_;
    // Steps have equal numbers of pairs of dimensions.
    const int64_t pairs = p.query_width() / 2;
    steps_ = (pairs + kAmxPairs - 1) / kAmxPairs;
    while (pairs % steps_ != 0) ++steps_;
    step_pairs_ = pairs / steps_;
    for (int tile = 0; tile < 8; ++tile) {
      const bool weights = tile >= 6, sums = tile < 4;
      key_shape_.set(tile, weights ? step_pairs_ : tile_rows_, 4 * (weights || sums ? kAmxLanes : step_pairs_));
      value_shape_.set(tile, weights ? kAmxPairs : tile_rows_, 4 * kAmxLanes);
    }
    if (rows <= kFewRows) return;
    configure_tiles(key_shape_);
    in_use_ = true;
  }

  // Computes the same scores as the function `scores`, but some rows at a time, in the same memory. Calls body(begin,
  // end, scores) once for each row.
  template <typename F>
  void scores(const Problem<bf16>& p, int64_t table_row, int64_t head, int64_t first, int64_t last, const bf16* query,
              float* score, Prefetcher& prefetcher, const F& body) const {
    const int64_t width = p.query_width(), begin = first / kGroup * kGroup, origin = first / kSegment * kSegment;
    const bf16* keys[kSegment / kGroup];
    int64_t groups = 0;
    for (int64_t group = begin; group < last; group += kGroup) keys[groups++] = p.key_at(table_row, group, head);
    if (rows_ <= kFewRows) {
      few_scores(query, rows_, width, steps_, step_pairs_, keys, groups, score + begin - origin, prefetcher);
      return body(0, rows_, score);
    }
    if (step_pairs_ != kAmxPairs) configure_tiles(key_shape_);
    int64_t done = 0;
    each_rows([&]<int TILES>(int64_t r, int64_t second) {
      Prefetcher* first_prefetcher = r == 0 ? &prefetcher : nullptr;
      const bf16 *q[2] = {query + r * width, query + second * width};
      for (int64_t g = 0; g < groups; g += 2) {
        float* at = score + begin - origin + g * kGroup;
        float* to[2] = {at, at + (second - r) * kSegment};
        if (g + 2 <= groups) dot<TILES, 2>(q, width, keys + g, to, first_prefetcher);
        else dot<TILES, 1>(q, width, keys + g, to, first_prefetcher);
      }
      // An overlapping tile has computed some finished rows again.
      const int64_t end = second + tile_rows_;
      body(done, end, score + (done - r) * kSegment);
      done = end;
    });
  }

  // Computes weighted sums of the values of [first, last) for all rows. Weights exist for multiples of kTwoGroups.
  void sum_values(const Problem<bf16>& p, int64_t table_row, int64_t head, int64_t first, int64_t last,
                  const bf16* weight, float* out, Prefetcher& prefetcher) const {
    const int64_t origin = first / kSegment * kSegment, begin = (first - origin) / kTwoGroups * kTwoGroups;
    if (rows_ <= kFewRows) {
      const bf16* groups[kSegment / kGroup] = {};
      for (int64_t at = first / kGroup * kGroup; at < last; at += kGroup) {
        groups[(at - origin - begin) / kGroup] = p.value_block(table_row, at, head);
      }
      return few_weighted_sums(groups, p.value_size, rows_, begin, first - origin, last - origin, weight, out, prefetcher);
    }
    thread_local Scratch scratch;
    const int64_t end = (last - origin + kTwoGroups - 1) / kTwoGroups * kTwoGroups;
    bf16* values = reinterpret_cast<bf16*>(scratch.floats(static_cast<size_t>(kSegment * p.value_size / 2)));
    for (int64_t group = begin; group < end; group += kGroup) {
      bf16* to = values + group * p.value_size;
      const int64_t at = origin + group, from = std::max(first - at, int64_t{0}), until = std::min(last - at, kGroup);
      prefetcher.prefetch(p.value_size * kGroup * static_cast<int64_t>(sizeof(bf16)) / kLine);
      if (from >= until) std::fill_n(to, kGroup * p.value_size, bf16{});
      else copy(p.value_block(table_row, at, head), p.value_size, from, until, to);
    }
    if (step_pairs_ != kAmxPairs) configure_tiles(value_shape_);
    for (int64_t d = 0, count; d < p.value_size; d += count * kAmxLanes) {
      count = std::min<int64_t>(2, (p.value_size - d) / kAmxLanes);
      each_rows([&]<int TILES>(int64_t r, int64_t second) {
        const bf16 *w[2] = {weight + r * kSegment, weight + second * kSegment};
        float* to[2] = {out + r * p.value_size + d, out + second * p.value_size + d};
        if (count == 2) sum<TILES, 2>(values + d * 2, p.value_size, begin, end, w, to);
        else sum<TILES, 1>(values + d * 2, p.value_size, begin, end, w, to);
      });
    }
  }

 private:
  // Calls body for all tiles, two at a time, with their first rows.
  template <typename F>
  void each_rows(const F& body) const {
    const int64_t most = rows_ - tile_rows_;
    for (int64_t tile = 0; tile < tiles_; tile += 2) {
      const int64_t first = std::min(tile * tile_rows_, most), second = std::min((tile + 1) * tile_rows_, most);
      if (tile + 1 < tiles_) body.template operator()<2>(first, second);
      else body.template operator()<1>(first, first);
    }
  }

  // Computes scores of TILES tiles of rows for GROUPS groups of positions.
  template <int TILES, int GROUPS>
  void dot(const bf16* const (&query)[2], int64_t width, const bf16* const* keys, float* const (&score)[2],
           Prefetcher* prefetcher) const {
    zero_sums<TILES, GROUPS>();
    for (int64_t step = 0; step < steps_; ++step) {
      const int64_t pair = step * 2 * step_pairs_;
      // Prefetches as many lines as this step reads of keys: a pair of dimensions of a group is one line.
      if (prefetcher != nullptr) prefetcher->prefetch(GROUPS * step_pairs_);
      load_tile<4>(query[0] + pair, 2 * width);
      if constexpr (TILES == 2) load_tile<5>(query[1] + pair, 2 * width);
      load_tile<6>(keys[0] + pair * kGroup, 4 * kGroup);
      if constexpr (GROUPS == 2) load_tile<7>(keys[1] + pair * kGroup, 4 * kGroup);
      add_all<TILES, GROUPS>();
    }
    store_sums<TILES, GROUPS>(score, 4 * kSegment);
  }

  // Computes weighted sums of TILES tiles of rows for VECS times kAmxLanes dimensions, over the positions [begin, end)
  // of a segment.
  template <int TILES, int VECS>
  void sum(const bf16* values, int64_t value_size, int64_t begin, int64_t end, const bf16* const (&weight)[2],
           float* const (&out)[2]) const {
    zero_sums<TILES, VECS>();
    for (int64_t group = begin; group < end; group += kTwoGroups) {
      const bf16* at = values + group * value_size;
      load_tile<4>(weight[0] + group, 2 * kSegment);
      if constexpr (TILES == 2) load_tile<5>(weight[1] + group, 2 * kSegment);
      load_tile<6>(at, 4 * value_size);
      if constexpr (VECS == 2) load_tile<7>(at + 2 * kAmxLanes, 4 * value_size);
      add_all<TILES, VECS>();
    }
    store_sums<TILES, VECS>(out, 4 * value_size);
  }

  template <int TILES, int COLUMNS>
  static GRIDWORK_INLINE void zero_sums() {
    zero_tile<0>();
    if constexpr (COLUMNS == 2) zero_tile<1>();
    if constexpr (TILES == 2) zero_tile<2>();
    if constexpr (TILES == 2 && COLUMNS == 2) zero_tile<3>();
  }

  template <int TILES, int COLUMNS>
  static GRIDWORK_INLINE void add_all() {
    add_tile_products<0, 4, 6>();
    if constexpr (COLUMNS == 2) add_tile_products<1, 4, 7>();
    if constexpr (TILES == 2) add_tile_products<2, 5, 6>();
    if constexpr (TILES == 2 && COLUMNS == 2) add_tile_products<3, 5, 7>();
  }

  template <int TILES, int COLUMNS>
  static GRIDWORK_INLINE void store_sums(float* const (&to)[2], int64_t stride) {
    store_tile<0>(to[0], stride);
    if constexpr (COLUMNS == 2) store_tile<1>(to[0] + kAmxLanes, stride);
    if constexpr (TILES == 2) store_tile<2>(to[1], stride);
    if constexpr (TILES == 2 && COLUMNS == 2) store_tile<3>(to[1] + kAmxLanes, stride);
  }

  // Copies a group's values, with zeros outside of [begin, end), where values may be NaN.
  static void copy(const bf16* values, int64_t value_size, int64_t begin, int64_t end, bf16* to) {
    for (int64_t position = 0; position < kGroup; position += 2) {
      const uint32_t low = position >= begin && position < end ? 0xffff : 0;
      const uint32_t high = position + 1 >= begin && position + 1 < end ? 0xffff0000 : 0;
      const __m512i mask = _mm512_set1_epi32(static_cast<int>(low | high));
      const int64_t pair = position * value_size;
      for (int64_t d = 0; d < 2 * value_size; d += 2 * kAmxLanes) {
        _mm512_storeu_si512(to + pair + d, _mm512_and_si512(_mm512_loadu_si512(values + pair + d), mask));
      }
    }
  }

  bool in_use_ = false;
  int64_t rows_ = 0, tiles_ = 0, tile_rows_ = 0, steps_ = 0, step_pairs_ = 0;
  TileConfig key_shape_, value_shape_;
};
#endif

}  // namespace gridwork
