// Attention over a paged cache, in float32 with an online softmax, and the writing of new keys and values into it.
//
// Keys lie so that one load brings one dimension of consecutive positions, values so that it brings dimensions of one
// position: both products are chains of multiply-adds with no sums across lanes.
//   keys: [num_blocks, kv_heads, key_size, block_size]    values: [num_blocks, kv_heads, block_size, value_size]
//
// Work is cut into tiles of consecutive tokens of one sequence with all query heads of one KV head, and into segments
// of the context, which start at fixed positions. A row's (one token's, one head's) result is the same whatever else is
// in its tile and whichever thread computes which segment: sums run over dimensions, and over the keys of a segment, in
// their order; segments are put together in theirs; what a row does not see adds exact zeros.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "rotary.h"
#include "scratch.h"
#include "simd.h"
#include "tensors.h"
#include "thread_pool.h"

namespace {

using namespace gridwork;

constexpr int64_t kSegment = 256;
// Positions whose scores are computed together. Where block sizes are no multiples of it, they are gathered first.
constexpr int64_t kGroup = 16;
constexpr int kGroupVecs = kGroup / kLanes;
// Rows of a tile, about: enough to use every key that is loaded often.
constexpr int64_t kTileRows = 24;
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
  int64_t block_size, window, chunk;
  float scale, softcap;

  int64_t group() const { return query_heads / kv_heads; }
  // First position that a token with so many keys sees.
  int64_t begin(int64_t end) const {
    if (chunk > 0) return (end - 1) / chunk * chunk;
    return window > 0 ? std::max<int64_t>(0, end - window) : 0;
  }
  const T* key_block(int64_t table_row, int64_t position, int64_t head) const {
    const int64_t block = tables[table_row * table_stride + position / block_size];
    return keys + (block * kv_heads + head) * key_size * block_size + position % block_size;
  }
  const T* value_block(int64_t table_row, int64_t position, int64_t head) const {
    const int64_t block = tables[table_row * table_stride + position / block_size];
    return values + ((block * kv_heads + head) * block_size + position % block_size) * value_size;
  }
};

// Consecutive tokens of one sequence, and the positions that any of them sees.
struct Tile {
  int64_t token, count, begin, end;
  int64_t first_segment() const { return begin / kSegment; }
  int64_t num_segments() const { return (end - 1) / kSegment + 1 - first_segment(); }
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

// ROWS rows of scores for GROUPS groups of positions. keys: a pointer for each group, dimensions `stride` apart.
template <typename T, int ROWS, int GROUPS>
void dot(const float* query, int64_t key_size, const T* const* keys, int64_t stride, float* score) {
  Vec sum[ROWS][GROUPS * kGroupVecs];
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < GROUPS * kGroupVecs; ++v) sum[r][v] = zero();
  }
  for (int64_t d = 0; d < key_size; ++d) {
    // What there is less of stays in registers.
    if constexpr (ROWS < GROUPS * kGroupVecs) {
      Vec q[ROWS];
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) q[r] = set1(query[r * key_size + d]);
#pragma GCC unroll 8
      for (int v = 0; v < GROUPS * kGroupVecs; ++v) {
        const Vec key = load(keys[v / kGroupVecs] + d * stride + v % kGroupVecs * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) sum[r][v] = fma(q[r], key, sum[r][v]);
      }
    } else {
      Vec key[GROUPS * kGroupVecs];
#pragma GCC unroll 8
      for (int v = 0; v < GROUPS * kGroupVecs; ++v) {
        key[v] = load(keys[v / kGroupVecs] + d * stride + v % kGroupVecs * kLanes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const Vec q = set1(query[r * key_size + d]);
#pragma GCC unroll 8
        for (int v = 0; v < GROUPS * kGroupVecs; ++v) sum[r][v] = fma(q, key[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < GROUPS * kGroupVecs; ++v) store(score + r * kSegment + v * kLanes, sum[r][v]);
  }
}

constexpr int kDotRows = 6;

template <typename T, int GROUPS, int ROWS = kDotRows>
void dot_of(int64_t rows, const float* query, int64_t key_size, const T* const* keys, int64_t stride, float* score) {
  if (rows == ROWS) return dot<T, ROWS, GROUPS>(query, key_size, keys, stride, score);
  if constexpr (ROWS > 1) dot_of<T, GROUPS, ROWS - 1>(rows, query, key_size, keys, stride, score);
}

// Keys of one group of positions, [key_size, kGroup], out of blocks that are smaller or end within it.
template <typename T>
void gather_group(const Problem<T>& p, int64_t table_row, int64_t head, int64_t first, int64_t count, T* to) {
  for (int64_t j = 0; j < kGroup; ++j) {
    const T* from = j < count ? p.key_block(table_row, first + j, head) : nullptr;
    for (int64_t d = 0; d < p.key_size; ++d) to[d * kGroup + j] = from != nullptr ? from[d * p.block_size] : T{};
  }
}

// Asks for `bytes` from `p` on to be brought into the cache: blocks lie anywhere, so that no hardware foresees the next.
inline void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(static_cast<const char*>(p) + i, _MM_HINT_T0);
}

// Scores of all rows for the positions [first, last), rounded out to whole groups.
template <typename T>
void scores(const Problem<T>& p, int64_t table_row, int64_t head, int64_t first, int64_t last, const float* query,
            int64_t rows, float* score) {
  const int64_t origin = first / kSegment * kSegment;
  const bool whole = p.block_size % kGroup == 0;
  thread_local Scratch gathered;
  for (int64_t group = first / kGroup * kGroup; group < last;) {
    constexpr int64_t kMost = 4;
    const T* keys[kMost];
    int64_t left = std::min(kMost, (last - group + kGroup - 1) / kGroup), stride = p.block_size;
    if (whole) {
      for (int64_t g = 0; g < left; ++g) keys[g] = p.key_block(table_row, group + g * kGroup, head);
    } else {
      auto* to = reinterpret_cast<T*>(gathered.floats(static_cast<size_t>(p.key_size * kGroup)));
      gather_group(p, table_row, head, group, std::min(kGroup, last - group), to);
      keys[0] = to;
      left = 1, stride = kGroup;
    }
    // Few rows: several groups at once, so that enough independent sums hide the latency of the multiply-add.
    const int64_t count = rows * kGroupVecs <= 2 && left == 4 ? 4 : rows * kGroupVecs <= 6 && left >= 2 ? 2 : 1;
    if (p.block_size == kGroup) {
      // The keys that come next, and the values of these positions.
      for (int64_t position = group; position < std::min(last, group + count * kGroup); position += kGroup) {
        const int64_t next = position + count * kGroup;
        if (next < last) prefetch(p.key_block(table_row, next, head), p.key_size * kGroup * sizeof(T));
        prefetch(p.value_block(table_row, position, head), kGroup * p.value_size * sizeof(T));
      }
    }
    for (int64_t r = 0; r < rows; r += kDotRows) {
      const float* q = query + r * p.key_size;
      float* s = score + r * kSegment + (group - origin);
      const int64_t some = std::min<int64_t>(kDotRows, rows - r);
      if (count == 4) dot_of<T, 4, 2>(some, q, p.key_size, keys, stride, s);
      else if (count == 2) dot_of<T, 2>(some, q, p.key_size, keys, stride, s);
      else dot_of<T, 1>(some, q, p.key_size, keys, stride, s);
    }
    group += count * kGroup;
  }
}

// Turns one row's scores for [first, last), of which it sees [begin, end), into weights; their largest score and sum.
template <typename T>
void weigh(const Problem<T>& p, float* score, int64_t first, int64_t last, int64_t begin, int64_t end, int64_t position,
           int64_t query_head, float& largest, float& total) {
  const int64_t origin = first / kSegment * kSegment;
  const int64_t from = (first - origin) / kLanes * kLanes, to = last - origin;
  largest = kMinusInfinity;
  total = 0;
  begin -= origin, end -= origin;
  if (end <= from || begin >= to) {
    for (int64_t j = from; j < to; j += kLanes) store(score + j, zero());
    return;
  }
  if (p.softcap > 0) {
    for (int64_t j = std::max(begin, from); j < std::min(end, to); ++j) {
      score[j] = p.softcap * std::tanh(score[j] / p.softcap);
    }
  }
  if (p.slopes != nullptr) {
    for (int64_t j = std::max(begin, from); j < std::min(end, to); ++j) {
      score[j] += p.slopes[query_head] * static_cast<float>(origin + j - position);
    }
  }
  const Vec nothing = set1(kMinusInfinity);
  Vec most = nothing;
  for (int64_t j = from; j < to; j += kLanes) {
    Vec s = load(score + j);
    if (j < begin || j + kLanes > end) s = first_lanes(nothing, first_lanes(s, nothing, end - j), begin - j);
    store(score + j, s);
    most = max(most, s);
  }
  largest = reduce_max(most);
  const Vec shift = set1(largest);
  Vec sum = zero();
  for (int64_t j = from; j < to; j += kLanes) {
    Vec w = exp(sub(load(score + j), shift));
    if (j < begin || j + kLanes > end) w = first_lanes(zero(), first_lanes(w, zero(), end - j), begin - j);
    store(score + j, w);
    sum = add(sum, w);
  }
  total = reduce_add(sum);
}

// ROWS rows of the weighted sum of VECS vectors of the values of [first, last).
template <typename T, int ROWS, int VECS>
void sum_values(const Problem<T>& p, int64_t table_row, int64_t head, int64_t first, int64_t last, const float* weight,
                int64_t dimension, float* out) {
  const int64_t origin = first / kSegment * kSegment;
  Vec sum[ROWS][VECS];
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECS; ++v) sum[r][v] = zero();
  }
  for (int64_t position = first; position < last;) {
    const int64_t stop = std::min(last, (position / p.block_size + 1) * p.block_size);
    const T* value = p.value_block(table_row, position, head) + dimension;
    for (; position < stop; ++position, value += p.value_size) {
      if constexpr (ROWS < VECS) {
        Vec w[ROWS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) w[r] = set1(weight[r * kSegment + position - origin]);
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) {
          const Vec x = load(value + v * kLanes);
#pragma GCC unroll 16
          for (int r = 0; r < ROWS; ++r) sum[r][v] = fma(w[r], x, sum[r][v]);
        }
        continue;
      }
      Vec x[VECS];
#pragma GCC unroll 4
      for (int v = 0; v < VECS; ++v) {
        x[v] = VECS > 1 ? load(value + v * kLanes) : load_some(value, p.value_size - dimension);
      }
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const Vec w = set1(weight[r * kSegment + position - origin]);
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECS; ++v) {
      float* o = out + r * p.value_size + dimension + v * kLanes;
      if (VECS > 1) store(o, sum[r][v]);
      else store_some(o, sum[r][v], p.value_size - dimension);
    }
  }
}

template <typename T, int VECS, int ROWS>
void sum_values_of(int64_t rows, const Problem<T>& p, int64_t table_row, int64_t head, int64_t first, int64_t last,
                   const float* weight, int64_t dimension, float* out) {
  if (rows == ROWS) return sum_values<T, ROWS, VECS>(p, table_row, head, first, last, weight, dimension, out);
  if constexpr (ROWS > 1) {
    sum_values_of<T, VECS, ROWS - 1>(rows, p, table_row, head, first, last, weight, dimension, out);
  }
}

template <typename T>
class Attention {
 public:
  Attention(const Problem<T>& problem, const Tile& tile, int64_t head) : p_(problem), tile_(tile), head_(head) {}

  int64_t rows() const { return tile_.count * p_.group(); }

  // One segment into `to`. memory: the thread's own.
  void segment(int64_t index, const float* query, float* score, const Partial& to) const {
    const int64_t row = p_.sequence[tile_.token];
    const int64_t first = std::max(index * kSegment, tile_.begin);
    const int64_t last = std::min((index + 1) * kSegment, tile_.end);
    scores(p_, row, head_, first, last, query, rows(), score);
    for (int64_t r = 0; r < rows(); ++r) {
      const int64_t end = p_.length[tile_.token + r / p_.group()];
      weigh(p_, score + r * kSegment, first, last, p_.begin(end), end, end - 1, query_head(r), to.largest[r],
            to.total[r]);
    }
    for (int64_t r = 0; r < rows(); r += 6) {
      const int64_t some = std::min<int64_t>(6, rows() - r);
      const float* weight = score + r * kSegment;
      float* sum = to.sum + r * p_.value_size;
      for (int64_t d = 0; d < p_.value_size;) {
        const int64_t left = p_.value_size - d;
        if (some <= 3 && left >= 4 * kLanes) {
          sum_values_of<T, 4, 3>(some, p_, row, head_, first, last, weight, d, sum), d += 4 * kLanes;
        } else if (left >= 2 * kLanes) {
          sum_values_of<T, 2, 6>(some, p_, row, head_, first, last, weight, d, sum), d += 2 * kLanes;
        } else {
          sum_values_of<T, 1, 6>(some, p_, row, head_, first, last, weight, d, sum), d += kLanes;
        }
      }
    }
  }

  // [rows, key_size] in float32, rotated and scaled.
  void load_queries(float* query) const {
    for (int64_t r = 0; r < rows(); ++r) {
      const int64_t token = tile_.token + r / p_.group();
      const T* from = p_.query + token * p_.query_token_stride + query_head(r) * p_.query_head_stride;
      float* to = query + r * p_.key_size;
      p_.rotary.apply(from, token, p_.key_size, to);
      for (int64_t d = 0; d < p_.key_size; ++d) to[d] *= p_.scale;
    }
  }

  // Before the first segment. A sink is one more logit without a value.
  void start(const Partial& to) const {
    for (int64_t r = 0; r < rows(); ++r) {
      to.largest[r] = p_.sinks != nullptr ? p_.sinks[query_head(r)] : kMinusInfinity;
      to.total[r] = p_.sinks != nullptr ? 1.0f : 0.0f;
    }
    std::fill_n(to.sum, rows() * p_.value_size, 0.0f);
  }

  // Adds the segment after those in `to`.
  void add_segment(int64_t index, const Partial& segment, const Partial& to) const {
    const int64_t first = std::max(index * kSegment, tile_.begin);
    const int64_t last = std::min((index + 1) * kSegment, tile_.end);
    for (int64_t r = 0; r < rows(); ++r) {
      const int64_t end = p_.length[tile_.token + r / p_.group()];
      if (end <= first || p_.begin(end) >= last) continue;
      const float largest = std::max(to.largest[r], segment.largest[r]);
      const float keep = std::exp(to.largest[r] - largest), take = std::exp(segment.largest[r] - largest);
      to.largest[r] = largest;
      to.total[r] = to.total[r] * keep + segment.total[r] * take;
      float* sum = to.sum + r * p_.value_size;
      const float* more = segment.sum + r * p_.value_size;
      for (int64_t d = 0; d < p_.value_size; ++d) sum[d] = sum[d] * keep + more[d] * take;
    }
  }

  void finish(const Partial& all) const {
    for (int64_t r = 0; r < rows(); ++r) {
      const int64_t token = tile_.token + r / p_.group();
      T* out = p_.out + (token * p_.query_heads + query_head(r)) * p_.value_size;
      const Vec inverse = set1(1.0f / all.total[r]);
      const float* sum = all.sum + r * p_.value_size;
      for (int64_t d = 0; d < p_.value_size; d += kLanes) {
        const int64_t left = p_.value_size - d;
        store_some(out + d, mul(load_some(sum + d, left), inverse), left);
      }
    }
  }

 private:
  int64_t query_head(int64_t row) const { return head_ * p_.group() + row % p_.group(); }

  const Problem<T>& p_;
  const Tile& tile_;
  int64_t head_;
};

template <typename T>
std::vector<Tile> tiles(const Problem<T>& p) {
  const int64_t most = std::max<int64_t>(1, kTileRows / p.group());
  std::vector<Tile> tiles;
  for (int64_t token = 0; token < p.tokens;) {
    int64_t stop = token + 1;
    int64_t begin = p.begin(p.length[token]);
    while (stop < p.tokens && stop - token < most && p.sequence[stop] == p.sequence[token]) {
      begin = std::min(begin, p.begin(p.length[stop++]));
    }
    tiles.push_back({token, stop - token, begin, p.length[stop - 1]});
    token = stop;
  }
  return tiles;
}

// What a thread needs besides results: queries, scores, one segment's partial result and that of all so far.
template <typename T>
struct Workspace {
  float *query, *score, *segment, *all;
  Workspace(const Problem<T>& p, int64_t rows) {
    thread_local Scratch scratch;
    const size_t partial = (Partial::num_floats(rows, p.value_size) + 15) / 16 * 16;
    const size_t queries = static_cast<size_t>((rows * p.key_size + 15) / 16 * 16);
    const size_t scores = static_cast<size_t>(rows * kSegment);
    query = scratch.floats(queries + scores + 2 * partial);
    score = query + queries;
    segment = score + scores;
    all = segment + partial;
  }
};

template <typename T>
void attend_whole(const Problem<T>& p, const std::vector<Tile>& tiles) {
  const int64_t tasks = static_cast<int64_t>(tiles.size()) * p.kv_heads;
  const int64_t chunk = std::clamp<int64_t>(tasks / (num_threads() * 8), 1, 16);
  // The longest contexts come last in a prompt: they are taken first, so that threads end together.
  parallel_for(tasks, chunk, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t index = tasks - 1 - task;
      const Tile& tile = tiles[static_cast<size_t>(index / p.kv_heads)];
      const Attention<T> attention(p, tile, index % p.kv_heads);
      const Workspace<T> own(p, attention.rows());
      const Partial segment(own.segment, attention.rows()), all(own.all, attention.rows());
      attention.load_queries(own.query);
      attention.start(all);
      for (int64_t s = 0; s < tile.num_segments(); ++s) {
        attention.segment(tile.first_segment() + s, own.query, own.score, segment);
        attention.add_segment(tile.first_segment() + s, segment, all);
      }
      attention.finish(all);
    }
  });
}

// Segments of one tile by several threads: few sequences with long contexts.
template <typename T>
void attend_split(const Problem<T>& p, const std::vector<Tile>& tiles) {
  std::vector<int64_t> first_task{0};
  int64_t most_rows = 0;
  for (const Tile& tile : tiles) {
    first_task.push_back(first_task.back() + tile.num_segments() * p.kv_heads);
    most_rows = std::max(most_rows, tile.count * p.group());
  }
  const int64_t size = static_cast<int64_t>(Partial::num_floats(most_rows, p.value_size) + 15) / 16 * 16;
  thread_local Scratch scratch;
  float* partials = scratch.floats(static_cast<size_t>(first_task.back() * size));
  parallel_for(first_task.back(), 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const auto at = std::upper_bound(first_task.begin(), first_task.end(), task) - first_task.begin() - 1;
      const Tile& tile = tiles[static_cast<size_t>(at)];
      const int64_t within = task - first_task[static_cast<size_t>(at)];
      const Attention<T> attention(p, tile, within / tile.num_segments());
      const Workspace<T> own(p, attention.rows());
      attention.load_queries(own.query);
      attention.segment(tile.first_segment() + within % tile.num_segments(), own.query, own.score,
                        Partial(partials + task * size, attention.rows()));
    }
  });
  parallel_for(static_cast<int64_t>(tiles.size()) * p.kv_heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const auto at = static_cast<size_t>(task / p.kv_heads);
      const int64_t head = task % p.kv_heads;
      const Attention<T> attention(p, tiles[at], head);
      const Workspace<T> own(p, attention.rows());
      const Partial all(own.all, attention.rows());
      attention.start(all);
      for (int64_t s = 0; s < tiles[at].num_segments(); ++s) {
        float* memory = partials + (first_task[at] + head * tiles[at].num_segments() + s) * size;
        attention.add_segment(tiles[at].first_segment() + s, Partial(memory, attention.rows()), all);
      }
      attention.finish(all);
    }
  });
}

template <typename T>
void attend(const Problem<T>& p) {
  const std::vector<Tile> all = tiles(p);
  int64_t segments = 0;
  for (const Tile& tile : all) segments += tile.num_segments();
  const auto count = static_cast<int64_t>(all.size());
  const bool few = count * p.kv_heads < num_threads() * 8;
  if (few && segments > count && num_threads() > 1) attend_split(p, all);
  else attend_whole(p, all);
}

// New keys (rotated) and values to their slots. key: [tokens, kv_heads, key_size], value likewise, dimensions contiguous.
template <typename T>
void write(const Problem<T>& p, const Tensor& key, const Tensor& value, const int64_t* slots) {
  const T* keys = data<T>(key);
  const T* values = data<T>(value);
  const int64_t key_token = key.stride(0), key_head = key.stride(1);
  const int64_t value_token = value.stride(0), value_head = value.stride(1);
  const auto write_tokens = [&](int64_t first, int64_t last) {
    thread_local Scratch scratch;
    float* rotated = scratch.floats(static_cast<size_t>(p.key_size + kLanes));
    for (int64_t token = first; token < last; ++token) {
      const int64_t block = slots[token] / p.block_size, offset = slots[token] % p.block_size;
      for (int64_t head = 0; head < p.kv_heads; ++head) {
        const T* k = keys + token * key_token + head * key_head;
        T* key_to = p.keys + (block * p.kv_heads + head) * p.key_size * p.block_size + offset;
        if (p.rotary.size == 0) {
          for (int64_t d = 0; d < p.key_size; ++d) key_to[d * p.block_size] = k[d];
        } else {
          p.rotary.apply(k, token, p.key_size, rotated);
          T narrow[kLanes];
          for (int64_t d = 0; d < p.key_size; d += kLanes) {
            const int64_t count = std::min<int64_t>(kLanes, p.key_size - d);
            store_some(narrow, load(rotated + d), count);
            for (int64_t i = 0; i < count; ++i) key_to[(d + i) * p.block_size] = narrow[i];
          }
        }
        const T* v = values + token * value_token + head * value_head;
        T* value_to = p.values + ((block * p.kv_heads + head) * p.block_size + offset) * p.value_size;
        std::copy_n(v, p.value_size, value_to);
      }
    }
  };
  if (p.tokens * p.kv_heads < 64) write_tokens(0, p.tokens);
  else parallel_for(p.tokens, std::max<int64_t>(1, 32 / p.kv_heads), write_tokens);
}

// See `gridwork_kernels/cpu_attention.py` for shapes and meaning; its caller has checked them.
Tensor paged_attention(const Tensor query, std::optional<Tensor> key, std::optional<Tensor> value, const Tensor keys,
                       const Tensor values, const Tensor tables, const Tensor sequence, const Tensor length,
                       const Tensor slots, std::optional<Tensor> cos, std::optional<Tensor> sin,
                       std::optional<Tensor> sinks, std::optional<Tensor> slopes, double scale, int64_t window,
                       int64_t chunk, double softcap) {
  Tensor out = torch::stable::new_empty(query, {query.size(0), query.size(1), values.size(3)});
  by_type(query, [&]<typename T>(T*) {
    const Problem<T> p{
        .query = data<T>(query),
        .keys = mutable_data<T>(keys),
        .values = mutable_data<T>(values),
        .out = mutable_data<T>(out),
        .tables = data<int32_t>(tables),
        .sequence = data<int32_t>(sequence),
        .length = data<int32_t>(length),
        .sinks = sinks.has_value() ? data<float>(*sinks) : nullptr,
        .slopes = slopes.has_value() ? data<float>(*slopes) : nullptr,
        .rotary = Rotary<T>::of(cos, sin),
        .tokens = query.size(0),
        .query_token_stride = query.stride(0),
        .query_head_stride = query.stride(1),
        .query_heads = query.size(1),
        .kv_heads = keys.size(1),
        .key_size = keys.size(2),
        .value_size = values.size(3),
        .table_stride = tables.stride(0),
        .block_size = keys.size(3),
        .window = window,
        .chunk = chunk,
        .scale = static_cast<float>(scale),
        .softcap = static_cast<float>(softcap),
    };
    if (key.has_value()) write(p, *key, *value, data<int64_t>(slots));
    attend(p);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def(
      "paged_attention(Tensor query, Tensor? key, Tensor? value, Tensor(a!) keys, Tensor(b!) values, Tensor tables, "
      "Tensor sequence, Tensor length, Tensor slots, Tensor? cos, Tensor? sin, Tensor? sinks, Tensor? slopes, "
      "float scale, int window, int chunk, float softcap) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) { m.impl("paged_attention", TORCH_BOX(&paged_attention)); }
