// What attention over the cache is computed of: the problem as a whole, and its tiles, some tokens of a sequence with
// the query heads of one KV head.
//
// Keys lie so that one load brings one dimension of consecutive positions, values so that it brings dimensions of one
// position: both products are chains of multiply-adds with no sums across lanes. Of bfloat16 a load brings two
// dimensions, two positions: D = kDepth of what is summed over lie together.
//   keys: [num_blocks, kv_heads, ceil(key_size / D), block_size, D]
//   values: [num_blocks, kv_heads, ceil(block_size / D), value_size, D]
// Blocks and heads may lie apart. In a cache of our own, a head's values of a block lie behind its keys, and heads
// behind each other.
#pragma once

#include <algorithm>
#include <limits>

#include "attention/rotary.h"
#include "common/simd.h"

namespace gridwork {

constexpr int64_t kSegment = 128;
// Positions whose scores are computed together. Where block sizes are no multiples of it, they are gathered first.
constexpr int64_t kGroup = 16;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

template <typename T>
struct Problem {
  const T* query;  // [tokens, query_heads, key_size], strides below, dimensions contiguous
  T* keys;
  T* values;
  T* out;                   // [tokens, query_heads, value_size]
  const int32_t* tables;    // [sequences, table_stride]: block ids
  const int32_t* sequence;  // [tokens]: row of `tables`; tokens of a sequence are consecutive
  const int32_t* length;    // [tokens]: keys it attends to at most, its own included
  const float* sinks;       // [query_heads] or null
  const float* slopes;      // [query_heads] or null
  Rotary<T> rotary;
  int64_t tokens, query_token_stride, query_head_stride, query_heads, kv_heads, key_size, value_size, table_stride;
  int64_t block_size, keys_block_stride, keys_head_stride, values_block_stride, values_head_stride, window, chunk;
  float scale, softcap;

  int64_t group() const { return query_heads / kv_heads; }
  // Values of a row of queries.
  int64_t query_width() const { return padded(key_size); }
  static int64_t padded(int64_t count) { return (count + kDepth<T> - 1) / kDepth<T> * kDepth<T>; }
  // First position that a token with so many keys sees.
  int64_t begin(int64_t end) const {
    if (chunk > 0) return (end - 1) / chunk * chunk;
    return window > 0 ? std::max<int64_t>(0, end - window) : 0;
  }
  // Blocks of kGroup are the usual ones, and division by an unknown number is slow.
  int64_t block(int64_t table_row, int64_t position) const {
    return tables[table_row * table_stride + (block_size == kGroup ? position / kGroup : position / block_size)];
  }
  int64_t place_in_block(int64_t position) const {
    return block_size == kGroup ? position % kGroup : position % block_size;
  }
  // Keys from a position on, in its block.
  const T* key_at(int64_t table_row, int64_t position, int64_t head) const {
    const T* first = keys + block(table_row, position) * keys_block_stride + head * keys_head_stride;
    return first + place_in_block(position) * kDepth<T>;
  }
  // Values of the block that a position lies in.
  const T* value_block(int64_t table_row, int64_t position, int64_t head) const {
    return values + block(table_row, position) * values_block_stride + head * values_head_stride;
  }
};

// Consecutive tokens of one sequence, and the positions that any of them sees.
struct Tile {
  int64_t token, count, begin, end;
  int64_t first_segment() const { return begin / kSegment; }
  int64_t num_segments() const { return (end - 1) / kSegment + 1 - first_segment(); }
  // Positions of a segment.
  int64_t first(int64_t segment) const { return std::max(segment * kSegment, begin); }
  int64_t last(int64_t segment) const { return std::min((segment + 1) * kSegment, end); }
};

// What a tile's rows have of one segment, or of several so far: for each row the largest score, the sum of the weights
// relative to it, and the weighted sum of the values.
struct Partial {
  float* largest;  // [rows]
  float* total;    // [rows]
  float* sum;      // [rows, value_size]

  static size_t num_floats(int64_t rows, int64_t value_size) { return static_cast<size_t>(rows * (2 + value_size)); }
  Partial(float* memory, int64_t rows) : largest(memory), total(memory + rows), sum(memory + 2 * rows) {}
};

constexpr int64_t kLine = 64;

// Some heads, one after the other.
struct Heads {
  int64_t first, count;
};

// Memory that will be read soon, in the order in which it lies: pieces of the same length, one for each block. Blocks
// lie anywhere, so that no hardware foresees the next one. Lines are asked for one by one while something else is
// computed, since a core waits for only some at a time; into the second cache, since of the first one's misses it has
// only few under way, of the second one's more.
class Prefetcher {
 public:
  Prefetcher() = default;
  explicit Prefetcher(int64_t bytes) : lines_(bytes / kLine) {}

  void add(const void* piece) { pieces_[count_++] = static_cast<const char*>(piece); }
  // The next line, if there is one.
  GRIDWORK_INLINE void prefetch() {
    if (at_ == end_ && !next()) return;
    _mm_prefetch(at_, _MM_HINT_T1);
    at_ += kLine;
  }
  void prefetch(int64_t lines) {
    for (; lines > 0; --lines) prefetch();
  }

 private:
  bool next() {
    if (next_ == count_ || lines_ == 0) return false;
    at_ = pieces_[next_++];
    end_ = at_ + lines_ * kLine;
    return true;
  }

  const char *at_ = nullptr, *end_ = nullptr;
  int64_t lines_ = 0, count_ = 0, next_ = 0;
  const char* pieces_[kSegment / kGroup];
};

}  // namespace gridwork
