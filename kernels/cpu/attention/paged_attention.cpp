// Attention over a paged cache, in float32 with an online softmax. New keys and values are written into the cache
// first.
//
// Work is cut into tiles of consecutive tokens of one sequence with all query heads of one KV head, and into segments
// of the context, which start at fixed positions. A row is one query head of one token. Its result does not depend on
// the other rows of its tile, nor on the thread that computes a segment: sums run over dimensions, and over the keys of
// a segment, in a fixed order; segments are merged in order; positions that a row does not see add exact zeros.

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "attention/attention_tile.h"
#include "common/tensors.h"
#include "common/thread_pool.h"

namespace {

using namespace gridwork;

// Approximate number of rows of a tile. With AMX tiles are larger, as long as every thread gets some.
template <typename T>
int64_t tile_rows(const Problem<T>& p) {
  using Unit = AmxAttention<T>;
  if constexpr (Unit::kAvailable) {
    const int64_t share = p.tokens * p.query_heads / (num_threads() * 4);
    if (Unit::takes(p)) return std::clamp(share, Unit::kMinRows, Unit::kMaxRows);
  }
  return kTileRows;
}

template <typename T>
std::vector<Tile> tiles(const Problem<T>& p) {
  const int64_t most = std::max<int64_t>(1, tile_rows(p) / p.group());
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

// Number of KV heads that one task computes, segment by segment: several heads make longer contiguous reads. Limits:
// the heads' keys and values of two segments stay in a core's L2 cache, and every thread gets some of the `pieces` of
// work.
template <typename T>
int64_t heads_per_task(const Problem<T>& p, int64_t pieces) {
  constexpr int64_t kMaxBytes = 192 << 10;
  const int64_t head_bytes = kSegment * p.keys_head_stride * static_cast<int64_t>(sizeof(T)) / p.block_size;
  for (int64_t heads = p.kv_heads; heads > 1; --heads) {
    if (p.kv_heads % heads == 0 && heads * head_bytes <= kMaxBytes &&
        pieces * (p.kv_heads / heads) >= num_threads() * 4) {
      return heads;
    }
  }
  return 1;
}

// Prefetches the keys of some heads in a segment, and their values, which lie in between.
template <typename T>
Prefetcher prefetcher_of(const Problem<T>& p, const Tile& tile, const Heads& heads, int64_t segment) {
  if (p.block_size != kGroup) return {};
  Prefetcher prefetcher(heads.count * p.keys_head_stride * static_cast<int64_t>(sizeof(T)));
  const int64_t row = p.sequence[tile.token], first = tile.first(segment) / kGroup * kGroup;
  for (int64_t at = first; at < tile.last(segment); at += kGroup) prefetcher.add(p.key_at(row, at, heads.first));
  return prefetcher;
}

// A thread's own memory: scores, weights and one segment's partial result, and for each of some heads the queries and
// the merged partial result.
template <typename T>
class Workspace {
 public:
  Workspace(const Problem<T>& p, int64_t rows, int64_t heads) : rows_(rows) {
    thread_local Scratch scratch;
    partial_ = (Partial::num_floats(rows, p.value_size) + 15) / 16 * 16;
    queries_ = static_cast<size_t>((rows * p.query_width() + 15) / 16 * 16);
    const size_t scores = static_cast<size_t>(rows * kSegment), count = static_cast<size_t>(heads);
    // Weights in float32 replace the scores in place.
    constexpr bool kInPlace = std::is_same_v<ProductType<T>, float>;
    query_ = scratch.floats(count * queries_ + (kInPlace ? 1 : 2) * scores + (1 + count) * partial_);
    score = query_ + count * queries_;
    weight = reinterpret_cast<ProductType<T>*>(kInPlace ? score : score + scores);
    segment_ = score + (kInPlace ? 1 : 2) * scores;
  }

  // head: index among the heads of the task.
  ProductType<T>* query(int64_t head) const {
    return reinterpret_cast<ProductType<T>*>(query_ + static_cast<size_t>(head) * queries_);
  }
  Partial segment() const { return {segment_, rows_}; }
  Partial all(int64_t head) const { return {segment_ + static_cast<size_t>(1 + head) * partial_, rows_}; }

  float* score;
  ProductType<T>* weight;

 private:
  int64_t rows_;
  size_t partial_, queries_;
  float *query_, *segment_;
};

// Attention of a tile for some heads.
struct Task {
  const Tile* tile;
  Heads heads;
};

template <typename T>
void attend_whole(const Problem<T>& p, const std::vector<Tile>& tiles) {
  const int64_t together = heads_per_task(p, static_cast<int64_t>(tiles.size()));
  std::vector<Task> tasks;
  for (const Tile& tile : tiles) {
    // Tiles of many rows are limited by multiplications, not by reads.
    const int64_t count = tile.count == 1 ? together : 1;
    for (int64_t head = 0; head < p.kv_heads; head += count) tasks.push_back({&tile, {head, count}});
  }
  // The last tiles of a prompt have the longest contexts. They go first, so that threads finish together.
  std::reverse(tasks.begin(), tasks.end());
  const auto count = static_cast<int64_t>(tasks.size());
  const int64_t chunk = std::clamp<int64_t>(count / (num_threads() * 8), 1, 16);
  parallel_for(count, chunk, [&](int64_t first, int64_t last) {
    AmxAttention<T> unit;
    for (int64_t task = first; task < last; ++task) {
      const auto& [tile, heads] = tasks[static_cast<size_t>(task)];
      const auto of_head = [&, &tile = *tile, &heads = heads](int64_t i) {
        return TileAttention<T>(p, tile, heads.first + i);
      };
      const Workspace<T> own(p, tile->count * p.group(), heads.count);
      for (int64_t i = 0; i < heads.count; ++i) {
        of_head(i).load_queries(own.query(i));
        if (p.sinks != nullptr) of_head(i).start(own.all(i));
      }
      for (int64_t s = 0; s < tile->num_segments(); ++s) {
        const int64_t segment = tile->first_segment() + s;
        Prefetcher prefetcher;
        if (s + 1 < tile->num_segments()) {
          prefetcher = prefetcher_of(p, *tile, heads, segment + 1);
        } else if (task + 1 < last) {
          const Task& next = tasks[static_cast<size_t>(task + 1)];
          prefetcher = prefetcher_of(p, *next.tile, next.heads, next.tile->first_segment());
        }
        // The first segment is not merged, unless there are sinks.
        const bool adds = s > 0 || p.sinks != nullptr;
        for (int64_t i = 0; i < heads.count; ++i) {
          const TileAttention<T> attention = of_head(i);
          const Partial to = adds ? own.segment() : own.all(i);
          attention.segment(segment, own.query(i), own.score, own.weight, to, prefetcher, unit);
          if (adds) attention.add_segment(segment, to, own.all(i));
        }
      }
      for (int64_t i = 0; i < heads.count; ++i) of_head(i).finish(own.all(i));
    }
  });
}

// Computes the segments of a tile on several threads, for few sequences with long contexts.
template <typename T>
void attend_split(const Problem<T>& p, const std::vector<Tile>& tiles) {
  int64_t segments = 0, max_rows = 0;
  for (const Tile& tile : tiles) {
    segments += tile.num_segments();
    max_rows = std::max(max_rows, tile.count * p.group());
  }
  const int64_t together = heads_per_task(p, segments), groups = p.kv_heads / together;
  std::vector<int64_t> first_task{0};
  for (const Tile& tile : tiles) first_task.push_back(first_task.back() + tile.num_segments() * groups);
  const int64_t size = static_cast<int64_t>(Partial::num_floats(max_rows, p.value_size) + 15) / 16 * 16;
  thread_local Scratch scratch;
  float* partials = scratch.floats(static_cast<size_t>(segments * p.kv_heads * size));
  // Partial result of a tile, by its index, for a head and a segment.
  const auto partial = [&, first = first_task.data()](size_t at, int64_t head, int64_t s) {
    const int64_t index = first[at] * together + head * tiles[at].num_segments() + s;
    return Partial(partials + index * size, tiles[at].count * p.group());
  };
  // A thread takes consecutive segments, so that it can prefetch all of them but the first.
  const int64_t chunk = std::max<int64_t>(1, first_task.back() / (num_threads() * 2));
  parallel_for(first_task.back(), chunk, [&](int64_t first, int64_t last) {
    AmxAttention<T> unit;
    // The tile and heads whose queries are loaded: consecutive segments mostly share them.
    int64_t loaded = -1;
    for (int64_t task = first; task < last; ++task) {
      const auto next_tile = std::upper_bound(first_task.begin(), first_task.end(), task);
      const auto at = static_cast<size_t>(next_tile - first_task.begin() - 1);
      const Tile& tile = tiles[at];
      const int64_t within = task - first_task[at], s = within % tile.num_segments();
      const Heads heads{within / tile.num_segments() * together, together};
      const Workspace<T> own(p, tile.count * p.group(), together);
      const int64_t queries = task - s;
      for (int64_t i = 0; i < together && queries != loaded; ++i) {
        TileAttention<T>(p, tile, heads.first + i).load_queries(own.query(i));
      }
      loaded = queries;
      const int64_t index = tile.first_segment() + s;
      Prefetcher prefetcher;
      if (task + 1 < last && s + 1 < tile.num_segments()) prefetcher = prefetcher_of(p, tile, heads, index + 1);
      for (int64_t i = 0; i < together; ++i) {
        const TileAttention<T> attention(p, tile, heads.first + i);
        attention.segment(index, own.query(i), own.score, own.weight, partial(at, heads.first + i, s), prefetcher, unit);
      }
    }
  });
  parallel_for(static_cast<int64_t>(tiles.size()) * p.kv_heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const auto at = static_cast<size_t>(task / p.kv_heads);
      const int64_t head = task % p.kv_heads;
      const TileAttention<T> attention(p, tiles[at], head);
      const Partial all = Workspace<T>(p, attention.rows(), 1).all(0);
      attention.start(all);
      for (int64_t s = 0; s < tiles[at].num_segments(); ++s) {
        attention.add_segment(tiles[at].first_segment() + s, partial(at, head, s), all);
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

// Writes new keys, rotated, and values to their slots.
template <typename T>
void write(const Problem<T>& p, const Attention& a) {
  constexpr int64_t kTogether = kDepth<T>;
  const int64_t width = p.query_width();
  // Writes one head of COUNT tokens with consecutive slots, from `token` on. plain: memory for COUNT keys.
  const auto write_head = [&]<int64_t COUNT>(std::integral_constant<int64_t, COUNT>, int64_t token, int64_t head,
                                             T* plain) {
    const int64_t block = a.slots[token] / p.block_size, offset = a.slots[token] % p.block_size;
    const T* key = static_cast<const T*>(a.key) + token * a.key_token_stride + head * a.key_head_stride;
    for (int64_t i = 0; i < COUNT; ++i) {
      p.rotary.apply(key + i * a.key_token_stride, token + i, p.key_size, plain + i * width);
      std::fill(plain + i * width + p.key_size, plain + (i + 1) * width, T{});
    }
    T* key_to = p.keys + block * p.keys_block_stride + head * p.keys_head_stride + offset * kTogether;
    for (int64_t d = 0; d < width; d += kTogether) {
      T row[COUNT * kTogether];
      for (int64_t i = 0; i < COUNT; ++i) std::memcpy(row + i * kTogether, plain + i * width + d, kTogether * sizeof(T));
      std::memcpy(key_to + d * p.block_size, row, sizeof row);
    }
    const T* value = static_cast<const T*>(a.value) + token * a.value_token_stride + head * a.value_head_stride;
    T* value_to = p.values + block * p.values_block_stride + head * p.values_head_stride;
    value_to += offset / kTogether * kTogether * p.value_size + offset % kTogether;
    for (int64_t d = 0; d < p.value_size; ++d) {
      for (int64_t i = 0; i < COUNT; ++i) value_to[d * kTogether + i] = value[i * a.value_token_stride + d];
    }
  };
  const auto write_tokens = [&](int64_t first, int64_t last) {
    thread_local Scratch scratch;
    T* plain = reinterpret_cast<T*>(scratch.floats(static_cast<size_t>(kTogether * width)));
    for (int64_t token = first; token < last;) {
      const int64_t slot = a.slots[token], end = token + kTogether;
      // A pair of tokens in one group of values is written at once.
      const bool whole = end <= last && slot % p.block_size % kTogether == 0 &&
                         slot % p.block_size + kTogether <= p.block_size && a.slots[end - 1] == slot + kTogether - 1;
      const auto write_heads = [&](auto count) {
        for (int64_t head = 0; head < p.kv_heads; ++head) write_head(count, token, head, plain);
        token += count;
      };
      if (whole) write_heads(std::integral_constant<int64_t, kTogether>{});
      else write_heads(std::integral_constant<int64_t, 1>{});
    }
  };
  // Tokens of a block share cache lines, which threads should rarely have in common.
  constexpr int64_t kFewTokens = 8, kMaxTokens = 32;
  const int64_t share = (p.tokens + num_threads() - 1) / num_threads();
  if (p.tokens < 2 * kFewTokens) write_tokens(0, p.tokens);
  else parallel_for(p.tokens, std::clamp(share, kFewTokens, kMaxTokens), write_tokens);
}

// See `gridwork_kernels/cpu_attention.py` for shapes and meaning; its caller has checked them.
Tensor paged_attention_of(const Tensor query, std::optional<Tensor> key, std::optional<Tensor> value, const Tensor keys,
                          const Tensor values, const Tensor tables, const Tensor sequence, const Tensor length,
                          const Tensor slots, std::optional<Tensor> cos, std::optional<Tensor> sin,
                          std::optional<Tensor> sinks, std::optional<Tensor> slopes, double scale, int64_t window,
                          int64_t chunk, double softcap, bool interleaved) {
  Tensor out = torch::stable::new_empty(query, {query.size(0), query.size(1), values.size(3)});
  paged_attention({
      .type = type_of(query),
      .query = query.data_ptr(),
      .query_token_stride = query.stride(0),
      .query_head_stride = query.stride(1),
      .key = key.has_value() ? key->data_ptr() : nullptr,
      .key_token_stride = key.has_value() ? key->stride(0) : 0,
      .key_head_stride = key.has_value() ? key->stride(1) : 0,
      .value = value.has_value() ? value->data_ptr() : nullptr,
      .value_token_stride = value.has_value() ? value->stride(0) : 0,
      .value_head_stride = value.has_value() ? value->stride(1) : 0,
      .keys = keys.data_ptr(),
      .values = values.data_ptr(),
      .keys_block_stride = keys.stride(0),
      .keys_head_stride = keys.stride(1),
      .values_block_stride = values.stride(0),
      .values_head_stride = values.stride(1),
      .out = out.data_ptr(),
      .tables = data<int32_t>(tables),
      .table_stride = tables.stride(0),
      .sequence = data<int32_t>(sequence),
      .length = data<int32_t>(length),
      .slots = data<int64_t>(slots),
      .cos = cos.has_value() ? cos->data_ptr() : nullptr,
      .sin = sin.has_value() ? sin->data_ptr() : nullptr,
      .rotary_stride = cos.has_value() ? cos->stride(0) : 0,
      .rotary_size = cos.has_value() ? cos->size(1) : 0,
      .rotary_float32 = cos.has_value() && type_of(*cos) == Type::float32,
      .rotary_interleaved = interleaved,
      .sinks = sinks.has_value() ? data<float>(*sinks) : nullptr,
      .slopes = slopes.has_value() ? data<float>(*slopes) : nullptr,
      .tokens = query.size(0),
      .query_heads = query.size(1),
      .kv_heads = keys.size(1),
      .key_size = query.size(2),
      .value_size = values.size(3),
      .block_size = keys.size(3),
      .window = window,
      .chunk = chunk,
      .scale = static_cast<float>(scale),
      .softcap = static_cast<float>(softcap),
  });
  return out;
}

}  // namespace

void gridwork::paged_attention(const Attention& a) {
  dispatch_type(a.type, [&]<typename T>(T*) {
    const Problem<T> p{
        .query = static_cast<const T*>(a.query),
        .keys = static_cast<T*>(a.keys),
        .values = static_cast<T*>(a.values),
        .out = static_cast<T*>(a.out),
        .tables = a.tables,
        .sequence = a.sequence,
        .length = a.length,
        .sinks = a.sinks,
        .slopes = a.slopes,
        .rotary = {a.cos, a.sin, a.rotary_stride, a.rotary_size, a.rotary_float32, a.rotary_interleaved},
        .tokens = a.tokens,
        .query_token_stride = a.query_token_stride,
        .query_head_stride = a.query_head_stride,
        .query_heads = a.query_heads,
        .kv_heads = a.kv_heads,
        .key_size = a.key_size,
        .value_size = a.value_size,
        .table_stride = a.table_stride,
        .block_size = a.block_size,
        .keys_block_stride = a.keys_block_stride,
        .keys_head_stride = a.keys_head_stride,
        .values_block_stride = a.values_block_stride,
        .values_head_stride = a.values_head_stride,
        .window = a.window,
        .chunk = a.chunk,
        .scale = a.scale,
        .softcap = a.softcap,
    };
    if (a.key != nullptr) write(p, a);
    attend(p);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def(
      "paged_attention(Tensor query, Tensor? key, Tensor? value, Tensor(a!) keys, Tensor(b!) values, Tensor tables, "
      "Tensor sequence, Tensor length, Tensor slots, Tensor? cos, Tensor? sin, Tensor? sinks, Tensor? slopes, "
      "float scale, int window, int chunk, float softcap, bool interleaved) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) { m.impl("paged_attention", TORCH_BOX(&paged_attention_of)); }
