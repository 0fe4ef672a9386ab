// The data of attention over the cache: the whole problem, and its tiles. A tile is some tokens of a sequence with the
// query heads of one KV head.
//
// One vector load reads one dimension of consecutive keys, or consecutive dimensions of one value. Both products are
// then chains of multiply-adds without sums across lanes. In bfloat16 a load reads pairs: D = kDepth dimensions of
// keys, or positions of values, are contiguous.
//   keys: [num_blocks, kv_heads, ceil(key_size / D), block_size, D]
//   values: [num_blocks, kv_heads, ceil(block_size / D), value_size, D]
// Blocks and heads have strides. In the caches that Gridwork allocates, a head's values of a block follow its keys, and
// the next head follows them.
#pragma once

#include <algorithm>
#include <limits>

#include "attention/rotary.h"
#include "common/simd.h"

namespace gridwork {

// Positions of a segment of the context, which is the unit of work of the online softmax.
constexpr int64_t kSegment = 128;
// Positions whose scores are computed together. Where the block size is not a multiple of it, keys are gathered first.
constexpr int64_t kGroup = 16;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

template <typename T>
struct Problem {
  const T* query;  // [tokens, query_heads, key_size], strides below, dimensions contiguous
  T* keys;
  T* values;
  T* out;                   // [tokens, query_heads, value_size]
  const int32_t* tables;    // [sequences, table_stride]: block ids
  const int32_t* sequence;  // [tokens]: row of `tables`; a sequence's tokens are consecutive
  const int32_t* length;    // [tokens]: number of keys it attends to at most, including its own
  const float* sinks;       // [query_heads] or null
  const float* slopes;      // [query_heads] or null
  Rotary<T> rotary;
  int64_t tokens, query_token_stride, query_head_stride, query_heads, kv_heads, key_size, value_size, table_stride;
  int64_t block_size, keys_block_stride, keys_head_stride, values_block_stride, values_head_stride, window, chunk;
  float scale, softcap;

  int64_t group() const { return query_heads / kv_heads; }
  // Length of a row of queries, padded.
  int64_t query_width() const { return padded(key_size); }
  static int64_t padded(int64_t count) { return (count + kDepth<T> - 1) / kDepth<T> * kDepth<T>; }
  // First position that the token at position `end - 1` sees.
  int64_t begin(int64_t end) const {
    if (chunk > 0) return (end - 1) / chunk * chunk;
    return window > 0 ? std::max<int64_t>(0, end - window) : 0;
  }
  // Division by a variable is slow, and most block sizes are kGroup.
  int64_t block(int64_t table_row, int64_t position) const {
    return tables[table_row * table_stride + (block_size == kGroup ? position / kGroup : position / block_size)];
  }
  int64_t place_in_block(int64_t position) const {
    return block_size == kGroup ? position % kGroup : position % block_size;
  }
  // The keys from a position to the end of its block.
  const T* key_at(int64_t table_row, int64_t position, int64_t head) const {
    const T* first = keys + block(table_row, position) * keys_block_stride + head * keys_head_stride;
    return first + place_in_block(position) * kDepth<T>;
  }
  // The values of the block that contains a position.
  const T* value_block(int64_t table_row, int64_t position, int64_t head) const {
    return values + block(table_row, position) * values_block_stride + head * values_head_stride;
  }
};

// Consecutive tokens of one sequence, and the range of positions that any of them sees.
struct Tile {
  int64_t token, count, begin, end;
  int64_t first_segment() const { return begin / kSegment; }
  int64_t num_segments() const { return (end - 1) / kSegment + 1 - first_segment(); }
  // The tile's positions [first, last) in a segment.
  int64_t first(int64_t segment) const { return std::max(segment * kSegment, begin); }
  int64_t last(int64_t segment) const { return std::min((segment + 1) * kSegment, end); }
};

// Partial softmax of a tile's rows over one segment, or over several. For each row: the largest score, the sum of the
// weights relative to it, and the weighted sum of values.
struct Partial {
  float* largest;  // [rows]
  float* total;    // [rows]
  float* sum;      // [rows, value_size]

  static size_t num_floats(int64_t rows, int64_t value_size) { return static_cast<size_t>(rows * (2 + value_size)); }
  Partial(float* memory, int64_t rows) : largest(memory), total(memory + rows), sum(memory + 2 * rows) {}
};

// Bytes of a cache line.
constexpr int64_t kLine = 64;

// Consecutive KV heads.
struct Heads {
  int64_t first, count;
};

// Prefetches memory that will be read soon: pieces of equal length, one for each block. Blocks lie anywhere, so the
// hardware prefetcher cannot predict the next one. Lines are prefetched one by one during other work, since a core has
// few misses in flight. They go into the L2 cache, which allows more misses in flight than the L1 cache: two cores of
// Zen 4 read random pieces of 2 KiB at 19 to 22 GB/s that way, and at 12 to 17 into L1. Tried without gain (Emerald
// Rapids): prefetches into L1 (0.9 times the speed), of every other line (0.8), at two places at a time (1.0), none
// (0.85), of four lines at a time (1.0), and of the next task's lines (AMX).
class Prefetcher {
 public:
  Prefetcher() = default;
  explicit Prefetcher(int64_t bytes) : lines_(bytes / kLine) {}

  void add(const void* piece) { pieces_[count_++] = static_cast<const char*>(piece); }
  // Prefetches the next line, if any.
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
