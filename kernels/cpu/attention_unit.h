// Scores and weighted sums of a tile on the CPU's matrix unit, for bfloat16 in blocks of kGroup positions: there keys
// and values lie as the unit takes them.
#pragma once

#include <algorithm>
#include <utility>

#include "attention_problem.h"
#include "matrix_unit.h"
#include "scratch.h"

namespace gridwork {

// A thread's use of the unit, from one tile to the next. Where it has none for a type, nothing.
template <typename T>
class AttentionUnit {
 public:
  static constexpr bool kThere = false;
};

#if defined(GRIDWORK_MATRIX_UNIT)
// Tile registers 0 to 3 are sums, 4 queries, 5 keys, 6 softmax weights, 7 values.
template <>
class AttentionUnit<bf16> {
 public:
  static constexpr bool kThere = true;
  // Rows of a tile of tokens, about: two tiles of the unit.
  static constexpr int64_t kRows = 2 * kUnitRows;

  static bool takes(const Problem<bf16>& p) { return p.block_size == kGroup && p.value_size % kUnitLanes == 0; }

  AttentionUnit() = default;
  AttentionUnit(const AttentionUnit&) = delete;
  AttentionUnit& operator=(const AttentionUnit&) = delete;
  ~AttentionUnit() {
    if (rows_ > 0) release_unit();
  }

  // Before anything is computed of so many rows. A thread's tiles are all of one problem.
  void prepare(const Problem<bf16>& p, int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    // Tiles of the same number of rows: the last one may begin earlier and compute some again.
    const int64_t tiles = (rows + kUnitRows - 1) / kUnitRows;
    tile_rows_ = (rows + tiles - 1) / tiles;
    // Pieces of the same number of pairs of dimensions.
    const int64_t pairs = p.query_width() / 2;
    steps_ = (pairs + kUnitPairs - 1) / kUnitPairs;
    while (pairs % steps_ != 0) ++steps_;
    step_pairs_ = pairs / steps_;
    UnitShape shape;
    for (int tile = 0; tile < 4; ++tile) shape.set(tile, tile_rows_, 4 * kUnitLanes);
    shape.set(4, tile_rows_, 4 * step_pairs_);
    shape.set(5, step_pairs_, 4 * kGroup);
    shape.set(6, tile_rows_, 2 * kGroup);
    shape.set(7, kGroup / 2, 4 * kUnitLanes);
    use_unit(shape);
  }

  // As `scores`.
  void scores(const Problem<bf16>& p, int64_t table_row, int64_t head, int64_t first, int64_t last, const bf16* query,
              float* score) const {
    constexpr int64_t kMost = 4;
    const int64_t width = p.query_width();
    score -= first / kSegment * kSegment;
    for (int64_t group = first / kGroup * kGroup, count; group < last; group += count * kGroup) {
      count = std::min(kMost, (last - group + kGroup - 1) / kGroup);
      const bf16* keys[kMost];
      const void* values[kMost];
      for (int64_t g = 0; g < count; ++g) {
        keys[g] = p.key_at(table_row, group + g * kGroup, head);
        values[g] = p.value_block(table_row, group + g * kGroup, head);
      }
      for (int64_t row = 0; row < rows_; row += tile_rows_) {
        const int64_t r = std::min(row, rows_ - tile_rows_);
        const Soon soon{values, row == 0 ? p.value_values() * static_cast<int64_t>(sizeof(bf16)) / kLine : 0};
        const bf16* q = query + r * width;
        float* s = score + r * kSegment + group;
        if (count == 4) dot<4>(q, width, keys, s, soon);
        else if (count == 3) dot<3>(q, width, keys, s, soon);
        else if (count == 2) dot<2>(q, width, keys, s, soon);
        else dot<1>(q, width, keys, s, soon);
      }
    }
  }

  // Weighted sums of the values of [first, last) for all rows. next: is asked for.
  void sum_values(const Problem<bf16>& p, int64_t table_row, int64_t head, int64_t first, int64_t last,
                  const bf16* weight, float* out, const NextKeys& next) const {
    Groups groups;
    groups.first = first / kGroup * kGroup, groups.origin = first / kSegment * kSegment;
    thread_local Scratch scratch;
    bf16* copy = reinterpret_cast<bf16*>(scratch.floats(static_cast<size_t>(p.value_values())));
    for (int64_t group = groups.first; group < last; group += kGroup) {
      const bf16* values = p.value_block(table_row, group, head);
      const int64_t begin = std::max(first - group, int64_t{0}), end = std::min(last - group, kGroup);
      // Of a segment the first and the last group can be cut.
      if (end - begin < kGroup) {
        cut(values, p.value_size, begin, end, copy);
        values = copy;
        copy += p.value_values();
      }
      const int64_t at = next.first + group - groups.first;
      groups.values[groups.count] = values;
      groups.next[groups.count++] = at < next.last ? p.key_at(next.table_row, at, next.head) : nullptr;
    }
    groups.next_lines = p.key_values() * static_cast<int64_t>(sizeof(bf16)) / kLine;
    for (int64_t d = 0, count; d < p.value_size; d += count * kUnitLanes) {
      count = std::min<int64_t>(4, (p.value_size - d) / kUnitLanes);
      for (int64_t row = 0; row < rows_; row += tile_rows_) {
        const int64_t r = std::min(row, rows_ - tile_rows_);
        groups.ask = row == 0 && d == 0;
        const bf16* w = weight + r * kSegment;
        float* to = out + r * p.value_size + d;
        if (count == 4) sum<4>(groups, p.value_size, d, w, to);
        else if (count == 3) sum<3>(groups, p.value_size, d, w, to);
        else if (count == 2) sum<2>(groups, p.value_size, d, w, to);
        else sum<1>(groups, p.value_size, d, w, to);
      }
    }
  }

 private:
  // Of a segment: where its values lie, and keys to ask for.
  struct Groups {
    const bf16* values[kSegment / kGroup];
    const bf16* next[kSegment / kGroup];
    int64_t next_lines = 0, count = 0, first = 0, origin = 0;
    bool ask = false;
  };

  // Calls body<0>() to body<COUNT - 1>().
  template <int COUNT, typename F>
  static GRIDWORK_INLINE void each(const F& body) {
    [&]<int... I>(std::integer_sequence<int, I...>) { (body.template operator()<I>(), ...); }
    (std::make_integer_sequence<int, COUNT>());
  }

  // A tile's scores for COUNT groups of positions.
  template <int COUNT>
  void dot(const bf16* query, int64_t width, const bf16* const* keys, float* score, const Soon& soon) const {
    each<COUNT>([]<int G>() { zero_tile<G>(); });
    const int64_t lines = (soon.lines + steps_ - 1) / steps_;
    for (int64_t step = 0; step < steps_; ++step) {
      load_tile<4>(query + step * 2 * step_pairs_, 2 * width);
      const int64_t until = std::min(soon.lines, (step + 1) * lines);
      each<COUNT>([&]<int G>() {
        for (int64_t line = step * lines; line < until; ++line) prefetch(soon.at[G], line);
        load_tile<5>(keys[G] + step * 2 * step_pairs_ * kGroup, 4 * kGroup);
        add_tile_products<G, 4, 5>();
      });
    }
    each<COUNT>([&]<int G>() { store_tile<G>(score + G * kGroup, 4 * kSegment); });
  }

  // A tile's weighted sums of COUNT times kUnitLanes dimensions, from `dimension` on.
  template <int COUNT>
  void sum(const Groups& groups, int64_t value_size, int64_t dimension, const bf16* weight, float* out) const {
    each<COUNT>([]<int V>() { zero_tile<V>(); });
    for (int64_t g = 0; g < groups.count; ++g) {
      if (groups.ask && groups.next[g] != nullptr) {
        for (int64_t line = 0; line < groups.next_lines; ++line) prefetch(groups.next[g], line);
      }
      load_tile<6>(weight + groups.first - groups.origin + g * kGroup, 2 * kSegment);
      each<COUNT>([&]<int V>() {
        load_tile<7>(groups.values[g] + (dimension + V * kUnitLanes) * 2, 4 * value_size);
        add_tile_products<V, 6, 7>();
      });
    }
    each<COUNT>([&]<int V>() { store_tile<V>(out + V * kUnitLanes, 4 * value_size); });
  }

  // A group's values with zeros for what is not in [begin, end) of it: that may be no number.
  static void cut(const bf16* values, int64_t value_size, int64_t begin, int64_t end, bf16* to) {
    for (int64_t position = 0; position < kGroup; position += 2) {
      const uint32_t low = position >= begin && position < end ? 0xffff : 0;
      const uint32_t high = position + 1 >= begin && position + 1 < end ? 0xffff0000 : 0;
      const __m512i mask = _mm512_set1_epi32(static_cast<int>(low | high));
      const int64_t pair = position * value_size;
      for (int64_t d = 0; d < 2 * value_size; d += 2 * kUnitLanes) {
        _mm512_storeu_si512(to + pair + d, _mm512_and_si512(_mm512_loadu_si512(values + pair + d), mask));
      }
    }
  }

  int64_t rows_ = 0, tile_rows_ = 0, steps_ = 0, step_pairs_ = 0;
};
#endif

}  // namespace gridwork
