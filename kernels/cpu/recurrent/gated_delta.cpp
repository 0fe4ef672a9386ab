// The gated delta rule (Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks"), token by token, with each sequence's
// state in a pool. Per value head, with state S of `key_size` rows and `value_size` columns:
//   m = exp(decay) S^T k,   S = exp(decay) S + k (beta (v - m))^T,   out = S^T q
// Columns of S are independent of each other, so that a task computes a block of them for all tokens of a sequence and
// keeps it in its cache. The order of sums depends on nothing but the sizes.

#include <cmath>
#include <cstring>

#include "common/scratch.h"
#include "common/tensors.h"
#include "recurrent/sequences.h"

namespace {

using namespace gridwork;

// Vectors of columns in a block, and partial sums over rows.
constexpr int kColumns = 2, kSums = 4;
constexpr int64_t kBlock = kColumns * kLanes;

// Queries and keys of all tokens in float32, normalised and scaled, and the decays of each row of a state.
struct Prepared {
  const float *query, *key;  // [tokens, key_heads, key_size]
  const float* decay;        // [tokens, value_heads], or [tokens, value_heads, key_size]
};

// Widens a head, divides it by its norm where asked, and multiplies it by a factor.
template <typename T>
void prepare_head(const T* from, int64_t size, bool normalise, float factor, float* to) {
  Vec squares = zero();
  for (int64_t i = 0; i < size; i += kLanes) {
    const Vec v = load_some(from + i, size - i);
    squares = fma(v, v, squares);
  }
  if (normalise) factor /= std::sqrt(reduce_add(squares) + 1e-6f);
  for (int64_t i = 0; i < size; i += kLanes) {
    store_some(to + i, mul(load_some(from + i, size - i), set1(factor)), size - i);
  }
}

template <typename T>
void prepare(const GatedDelta& d, float* query, float* key, float* decay) {
  const int64_t row = d.key_heads * d.key_size, decays = d.value_heads * (d.decay_of_dimensions ? d.key_size : 1);
  const float factor = 1.0f / std::sqrt(static_cast<float>(d.key_size));
  parallel_for(d.tokens, std::max<int64_t>(1, kTaskWork / (8 * row)), [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
      for (int64_t head = 0; head < d.key_heads; ++head) {
        const int64_t at = head * d.key_size;
        prepare_head(static_cast<const T*>(d.query.data) + token * d.query.stride + at, d.key_size, d.normalise, factor,
                     query + token * row + at);
        prepare_head(static_cast<const T*>(d.key.data) + token * d.key.stride + at, d.key_size, d.normalise, 1.0f,
                     key + token * row + at);
      }
      const float* logs = static_cast<const float*>(d.decay.data) + token * d.decay.stride;
      for (int64_t i = 0; i < decays; i += kLanes) {
        store_some(decay + token * decays + i, exp(load_some(logs + i, decays - i)), decays - i);
      }
    }
  });
}

// Updates a block of columns by one token. state: rows `stride` apart, of which `count` columns are used. COLUMNS:
// vectors of columns. Returns the outputs in `out`.
template <int COLUMNS, bool PER_ROW>
GRIDWORK_INLINE void update(float* state, int64_t stride, int64_t rows, const float* query, const float* key,
                            const float* decay, const Vec (&value)[COLUMNS], float beta, Vec (&out)[COLUMNS]) {
  Vec sums[kSums][COLUMNS];
  unroll<kSums>([&](auto s) GRIDWORK_INLINE_LAMBDA {
    unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA { sums[s][c] = zero(); });
  });
  const auto total = [&](auto c) GRIDWORK_INLINE_LAMBDA {
    return add(add(sums[0][c], sums[1][c]), add(sums[2][c], sums[3][c]));
  };
  const auto remember = [&](int64_t row, auto s) GRIDWORK_INLINE_LAMBDA {
    const Vec k = set1(PER_ROW ? decay[row] * key[row] : key[row]);
    unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA {
      sums[s][c] = fma(load(state + row * stride + c * kLanes), k, sums[s][c]);
    });
  };
  int64_t row = 0;
  for (; row + kSums <= rows; row += kSums) {
    unroll<kSums>([&](auto s) GRIDWORK_INLINE_LAMBDA { remember(row + s, s); });
  }
  for (; row < rows; ++row) remember(row, std::integral_constant<int, 0>());
  Vec change[COLUMNS];
  unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA {
    const Vec memory = PER_ROW ? total(c) : mul(total(c), set1(decay[0]));
    change[c] = mul(sub(value[c], memory), set1(beta));
  });
  unroll<kSums>([&](auto s) GRIDWORK_INLINE_LAMBDA {
    unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA { sums[s][c] = zero(); });
  });
  const auto write = [&](int64_t row, auto s) GRIDWORK_INLINE_LAMBDA {
    const Vec k = set1(key[row]), q = set1(query[row]), kept = set1(decay[PER_ROW ? row : 0]);
    unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA {
      float* at = state + row * stride + c * kLanes;
      const Vec updated = fma(k, change[c], mul(load(at), kept));
      store(at, updated);
      sums[s][c] = fma(updated, q, sums[s][c]);
    });
  };
  for (row = 0; row + kSums <= rows; row += kSums) {
    unroll<kSums>([&](auto s) GRIDWORK_INLINE_LAMBDA { write(row + s, s); });
  }
  for (; row < rows; ++row) write(row, std::integral_constant<int, 0>());
  unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA { out[c] = total(c); });
}

// All tokens of a sequence, for `count` columns of a value head from `begin` on.
template <typename T, int COLUMNS, bool PER_ROW>
void run_block(const GatedDelta& d, const Prepared& prepared, int64_t sequence, int64_t head, int64_t begin,
               int64_t count, int64_t first, int64_t last) {
  const int64_t rows = d.key_size, key_head = head / (d.value_heads / d.key_heads);
  float* own = d.pool + ((d.states.slots[sequence] * d.value_heads + head) * rows) * d.value_size + begin;
  thread_local Scratch scratch;
  float* state = own;
  int64_t stride = d.value_size;
  const bool fresh = d.states.fresh[sequence], copies = last - first > 1 || count < COLUMNS * kLanes || fresh;
  if (copies) {
    stride = COLUMNS * kLanes;
    state = scratch.floats(static_cast<size_t>(rows * stride));
    for (int64_t row = 0; row < rows; ++row) {
      unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA {
        const Vec v = fresh ? zero() : load_some(own + row * d.value_size + c * kLanes, count - c * kLanes);
        store(state + row * stride + c * kLanes, v);
      });
    }
  }
  for (int64_t token = first; token < last; ++token) {
    const int64_t at = (token * d.key_heads + key_head) * rows;
    const float* decay = prepared.decay + (token * d.value_heads + head) * (PER_ROW ? rows : 1);
    const T* values = static_cast<const T*>(d.value.data) + token * d.value.stride + head * d.value_size + begin;
    T* out = static_cast<T*>(d.out) + (token * d.value_heads + head) * d.value_size + begin;
    Vec value[COLUMNS], result[COLUMNS];
    unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA {
      value[c] = load_some(values + c * kLanes, count - c * kLanes);
    });
    const float beta = static_cast<const float*>(d.beta.data)[token * d.beta.stride + head];
    update<COLUMNS, PER_ROW>(state, stride, rows, prepared.query + at, prepared.key + at, decay, value, beta, result);
    unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA {
      store_some(out + c * kLanes, result[c], count - c * kLanes);
    });
  }
  if (!copies) return;
  for (int64_t row = 0; row < rows; ++row) {
    unroll<COLUMNS>([&](auto c) GRIDWORK_INLINE_LAMBDA {
      const Vec v = load(state + row * stride + c * kLanes);
      store_some(own + row * d.value_size + c * kLanes, v, count - c * kLanes);
    });
  }
}

template <typename T, bool PER_ROW>
void run(const GatedDelta& d, const Prepared& prepared) {
  const int64_t blocks = (d.value_size + kBlock - 1) / kBlock;
  over_sequences(d.states, d.value_heads * blocks, 4 * kBlock * d.key_size,
                 [&](int64_t sequence, int64_t part, int64_t first, int64_t last) {
                   const int64_t begin = part % blocks * kBlock, count = std::min(kBlock, d.value_size - begin);
                   if (count > kLanes) {
                     run_block<T, kColumns, PER_ROW>(d, prepared, sequence, part / blocks, begin, count, first, last);
                   } else {
                     run_block<T, 1, PER_ROW>(d, prepared, sequence, part / blocks, begin, count, first, last);
                   }
                 });
}

Tensor gated_delta_of(const Tensor query, const Tensor key, const Tensor value, const Tensor decay, const Tensor beta,
                      bool normalise, const Tensor starts, const Tensor slots, const Tensor fresh, const Tensor pool) {
  Tensor out = torch::stable::new_empty(value, shape(value));
  gated_delta({
      .type = type_of(value),
      .query = {query.data_ptr(), query.stride(0)},
      .key = {key.data_ptr(), key.stride(0)},
      .value = {value.data_ptr(), value.stride(0)},
      .decay = {decay.data_ptr(), decay.stride(0)},
      .decay_of_dimensions = decay.dim() == 3,
      .beta = {beta.data_ptr(), beta.stride(0)},
      .normalise = normalise,
      .tokens = value.size(0),
      .key_heads = key.size(1),
      .value_heads = value.size(1),
      .key_size = key.size(2),
      .value_size = value.size(2),
      .states = {slots.size(0), data<int32_t>(starts), data<int64_t>(slots), data<bool>(fresh)},
      .pool = mutable_data<float>(pool),
      .out = out.data_ptr(),
  });
  return out;
}

}  // namespace

void gridwork::gated_delta(const GatedDelta& d) {
  const int64_t keys = d.tokens * d.key_heads * d.key_size;
  const int64_t decays = d.tokens * d.value_heads * (d.decay_of_dimensions ? d.key_size : 1);
  thread_local Scratch scratch;
  float* memory = scratch.floats(static_cast<size_t>(2 * keys + decays));
  const Prepared prepared{memory, memory + keys, memory + 2 * keys};
  dispatch_type(d.type, [&]<typename T>(T*) {
    prepare<T>(d, memory, memory + keys, memory + 2 * keys);
    if (d.decay_of_dimensions) run<T, true>(d, prepared);
    else run<T, false>(d, prepared);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def(
      "gated_delta(Tensor query, Tensor key, Tensor value, Tensor decay, Tensor beta, bool normalise, Tensor starts, "
      "Tensor slots, Tensor fresh, Tensor(a!) pool) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) { m.impl("gated_delta", TORCH_BOX(&gated_delta_of)); }
