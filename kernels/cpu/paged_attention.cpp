// Attention over a paged cache for x86-64 CPUs with AVX-512, one query token at a time, in float32 with an online softmax.
//
// Every (token, KV head) is one task, whatever sequence it belongs to: decodes and chunks of prefill are the same to it,
// and a token's result does not depend on the other tokens of the batch.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "avx512.h"
#include "thread_pool.h"

namespace {

using torch::stable::Tensor;
using gridwork::bf16;
using gridwork::load16;
using gridwork::store16;

// Head sizes are multiples of 16 up to this.
constexpr int64_t kLargestHead = 256;
// Keys whose scores are held at once.
constexpr int64_t kTile = 64;

// exp(x) for x <= 0, to about one unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (the
// coefficients are those of the Taylor series to degree 7). NaN stays NaN.
AVX512 inline __m512 exp16(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // exp(-104) is zero; the second operand is kept when it is NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.0f / 5040);
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
  }
  return _mm512_scalef_ps(y, n);
}

template <typename T>
struct Problem {
  const T* query;          // [tokens, query_heads, key_size], heads contiguous, token stride below
  const T* keys;           // [slots, kv_heads, key_size]
  const T* values;         // [slots, kv_heads, value_size]
  T* out;                  // [tokens, query_heads, value_size]
  const int32_t* tables;   // [sequences, table_stride]: block ids
  const int32_t* sequence; // [tokens]: row of `tables`
  const int32_t* length;   // [tokens]: keys it attends to at most, its own included
  const float* sinks;      // [query_heads] or null
  int64_t query_stride, query_heads, kv_heads, key_size, value_size, table_stride, block_size, window, chunk;
  float scale, softcap;
};

// One query token and the query heads [head, head + GROUP) that share one KV head.
template <typename T, int GROUP>
AVX512 void attend(const Problem<T>& p, int64_t token, int64_t kv_head, int64_t head) {
  alignas(64) float query[GROUP][kLargestHead], sum[GROUP][kLargestHead], score[GROUP][kTile];
  float largest[GROUP], total[GROUP];
  for (int g = 0; g < GROUP; ++g) {
    const T* q = p.query + token * p.query_stride + (head + g) * p.key_size;
    for (int64_t d = 0; d < p.key_size; d += 16) {
      _mm512_store_ps(query[g] + d, _mm512_mul_ps(load16(q + d), _mm512_set1_ps(p.scale)));
    }
    for (int64_t d = 0; d < p.value_size; d += 16) _mm512_store_ps(sum[g] + d, _mm512_setzero_ps());
    // A sink is one more logit without a value.
    largest[g] = p.sinks != nullptr ? p.sinks[head + g] : -std::numeric_limits<float>::infinity();
    total[g] = p.sinks != nullptr ? 1.0f : 0.0f;
  }
  const int32_t* table = p.tables + p.sequence[token] * p.table_stride;
  const int64_t end = p.length[token];
  const int64_t begin = p.chunk > 0    ? (end - 1) / p.chunk * p.chunk
                        : p.window > 0 ? std::max<int64_t>(0, end - p.window)
                                       : 0;
  const int64_t key_stride = p.kv_heads * p.key_size, value_stride = p.kv_heads * p.value_size;

  for (int64_t first = begin; first < end;) {
    // A tile lies within one block, so that its slots are consecutive.
    const int64_t offset = first % p.block_size;
    const int64_t count = std::min({kTile, end - first, p.block_size - offset});
    const int64_t slot = static_cast<int64_t>(table[first / p.block_size]) * p.block_size + offset;
    const T* k = p.keys + slot * key_stride + kv_head * p.key_size;
    for (int64_t j = 0; j < count; ++j, k += key_stride) {
      __m512 dot[GROUP];
      for (int g = 0; g < GROUP; ++g) dot[g] = _mm512_setzero_ps();
      for (int64_t d = 0; d < p.key_size; d += 16) {
        const __m512 kd = load16(k + d);
        for (int g = 0; g < GROUP; ++g) dot[g] = _mm512_fmadd_ps(kd, _mm512_load_ps(query[g] + d), dot[g]);
      }
      for (int g = 0; g < GROUP; ++g) score[g][j] = _mm512_reduce_add_ps(dot[g]);
    }
    for (int g = 0; g < GROUP; ++g) {
      float tile_largest = largest[g];
      for (int64_t j = 0; j < count; ++j) {
        if (p.softcap > 0) score[g][j] = p.softcap * std::tanh(score[g][j] / p.softcap);
        // Written so that a NaN score spreads to the result.
        tile_largest = score[g][j] <= tile_largest ? tile_largest : score[g][j];
      }
      const float shrink = largest[g] == tile_largest ? 1.0f : std::exp(largest[g] - tile_largest);
      if (shrink != 1.0f) {
        for (int64_t d = 0; d < p.value_size; d += 16) {
          _mm512_store_ps(sum[g] + d, _mm512_mul_ps(_mm512_load_ps(sum[g] + d), _mm512_set1_ps(shrink)));
        }
        total[g] *= shrink;
      }
      largest[g] = tile_largest;
      __m512 tile_total = _mm512_setzero_ps();
      for (int64_t j = 0; j < count; j += 16) {
        const __mmask16 mask = count - j >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count - j)) - 1);
        const __m512 x = _mm512_sub_ps(_mm512_load_ps(score[g] + j), _mm512_set1_ps(tile_largest));
        const __m512 weight = _mm512_maskz_mov_ps(mask, exp16(x));
        _mm512_store_ps(score[g] + j, weight);
        tile_total = _mm512_add_ps(tile_total, weight);
      }
      total[g] += _mm512_reduce_add_ps(tile_total);
    }
    const T* v = p.values + slot * value_stride + kv_head * p.value_size;
    for (int64_t d = 0; d < p.value_size; d += 16) {
      __m512 part[GROUP];
      for (int g = 0; g < GROUP; ++g) part[g] = _mm512_load_ps(sum[g] + d);
      for (int64_t j = 0; j < count; ++j) {
        const __m512 vd = load16(v + j * value_stride + d);
        for (int g = 0; g < GROUP; ++g) part[g] = _mm512_fmadd_ps(vd, _mm512_set1_ps(score[g][j]), part[g]);
      }
      for (int g = 0; g < GROUP; ++g) _mm512_store_ps(sum[g] + d, part[g]);
    }
    first += count;
  }
  for (int g = 0; g < GROUP; ++g) {
    T* o = p.out + (token * p.query_heads + head + g) * p.value_size;
    const __m512 inverse = _mm512_set1_ps(1.0f / total[g]);
    for (int64_t d = 0; d < p.value_size; d += 16) {
      store16(o + d, _mm512_mul_ps(_mm512_load_ps(sum[g] + d), inverse));
    }
  }
}

template <typename T>
void attend_group(const Problem<T>& p, int64_t token, int64_t kv_head) {
  const int64_t group = p.query_heads / p.kv_heads;
  int64_t head = kv_head * group, left = group;
  while (left > 0) {
    switch (left) {
      case 1: attend<T, 1>(p, token, kv_head, head); return;
      case 2: attend<T, 2>(p, token, kv_head, head); return;
      case 3: attend<T, 3>(p, token, kv_head, head); return;
      default:
        attend<T, 4>(p, token, kv_head, head);
        head += 4;
        left -= 4;
    }
  }
}

template <typename T>
void run(const Problem<T>& p, int64_t tokens) {
  const int64_t tasks = tokens * p.kv_heads;
  // Contexts differ in length: threads take a few tasks at a time.
  const int64_t chunk = std::clamp<int64_t>(tasks / (gridwork::num_threads() * 8), 1, 16);
  gridwork::parallel_for(tasks, chunk, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) attend_group(p, task / p.kv_heads, task % p.kv_heads);
  });
}

template <typename T>
void dispatch(const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& tables,
              const Tensor& sequence, const Tensor& length, const float* sinks, Tensor& out, int64_t block_size,
              double scale, int64_t window, int64_t chunk, double softcap) {
  const Problem<T> p{
      .query = static_cast<const T*>(query.data_ptr()),
      .keys = static_cast<const T*>(keys.data_ptr()),
      .values = static_cast<const T*>(values.data_ptr()),
      .out = static_cast<T*>(out.data_ptr()),
      .tables = static_cast<const int32_t*>(tables.data_ptr()),
      .sequence = static_cast<const int32_t*>(sequence.data_ptr()),
      .length = static_cast<const int32_t*>(length.data_ptr()),
      .sinks = sinks,
      .query_stride = query.stride(0),
      .query_heads = query.size(1),
      .kv_heads = keys.size(1),
      .key_size = keys.size(2),
      .value_size = values.size(2),
      .table_stride = tables.stride(0),
      .block_size = block_size,
      .window = window,
      .chunk = chunk,
      .scale = static_cast<float>(scale),
      .softcap = static_cast<float>(softcap),
  };
  run(p, query.size(0));
}

// See `gridwork_kernels/cpu_attention.py` for shapes and meaning; its caller has checked them.
Tensor paged_attention(const Tensor query, const Tensor keys, const Tensor values, const Tensor tables,
                       const Tensor sequence, const Tensor length, std::optional<Tensor> sinks, int64_t block_size,
                       double scale, int64_t window, int64_t chunk, double softcap) {
  Tensor out = torch::stable::new_empty(query, {query.size(0), query.size(1), values.size(2)});
  const float* sink = sinks.has_value() ? static_cast<const float*>(sinks->data_ptr()) : nullptr;
  if (query.scalar_type() == torch::headeronly::ScalarType::BFloat16) {
    dispatch<bf16>(query, keys, values, tables, sequence, length, sink, out, block_size, scale, window, chunk,
                   softcap);
  } else {
    dispatch<float>(query, keys, values, tables, sequence, length, sink, out, block_size, scale, window, chunk,
                   softcap);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def(
      "paged_attention(Tensor query, Tensor keys, Tensor values, Tensor tables, Tensor sequence, Tensor length, "
      "Tensor? sinks, int block_size, float scale, int window, int chunk, float softcap) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) { m.impl("paged_attention", TORCH_BOX(&paged_attention)); }
