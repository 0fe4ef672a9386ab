// Selective scans, token by token, with each sequence's state in a pool: Mamba-2's (Dao and Gu 2024, "Transformers are
// SSMs"), where a head shares one decay, and Mamba's (Gu and Dao 2023, "Mamba"), where each value of a state has one.
// The order of sums depends on nothing but the sizes.

#include <cmath>
#include <optional>

#include "common/scratch.h"
#include "common/tensors.h"
#include "recurrent/sequences.h"

namespace {

using namespace gridwork;

// A number as it is in memory of type T.
template <typename T>
float rounded_number(float v) {
  T all[kLanes];
  store_some(all, set1(v), 1);
  return widen(all[0]);
}

// The step of one head or channel, with the roundings of the plain form.
template <typename T>
float step_of(float step, float bias, bool softplus) {
  const float sum = rounded_number<T>(step + rounded_number<T>(bias));
  if (!softplus) return sum;
  return sum > 20.0f ? sum : rounded_number<T>(std::log1p(std::exp(sum)));
}

// Vectors of values of a head that a task computes.
constexpr int kMaxVectors = 4;
constexpr int64_t kBlock = kMaxVectors * kLanes;

// A block of a head's values for all tokens of a sequence. The state has `state_size` rows of `size` values.
template <typename T, int VECTORS>
void scan_block(const ScanHeads& s, const float* steps, const float* decays, int64_t sequence, int64_t head,
                int64_t begin, int64_t count, int64_t first, int64_t last) {
  const int64_t rows = s.state_size, group = head / (s.heads / s.groups);
  float* own = s.pool + ((s.states.slots[sequence] * s.heads + head) * rows) * s.size + begin;
  thread_local Scratch scratch;
  float* state = own;
  int64_t stride = s.size;
  const bool fresh = s.states.fresh[sequence], copies = last - first > 1 || count < VECTORS * kLanes || fresh;
  if (copies) {
    stride = VECTORS * kLanes;
    state = scratch.floats(static_cast<size_t>(rows * stride));
    for (int64_t row = 0; row < rows; ++row) {
      unroll<VECTORS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
        const Vec old = fresh ? zero() : load_some(own + row * s.size + v * kLanes, count - v * kLanes);
        store(state + row * stride + v * kLanes, old);
      });
    }
  }
  for (int64_t token = first; token < last; ++token) {
    const T* x = static_cast<const T*>(s.x.data) + token * s.x.stride + head * s.size + begin;
    const T* b = static_cast<const T*>(s.b.data) + token * s.b.stride + group * rows;
    const T* c = static_cast<const T*>(s.c.data) + token * s.c.stride + group * rows;
    float* out = s.out + (token * s.heads + head) * s.size + begin;
    const Vec step = set1(steps[token * s.heads + head]), decay = set1(decays[token * s.heads + head]);
    Vec input[VECTORS], sums[2][VECTORS];
    unroll<VECTORS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      input[v] = mul(load_some(x + v * kLanes, count - v * kLanes), step);
      sums[0][v] = sums[1][v] = zero();
    });
    const auto advance = [&](int64_t row, auto half) GRIDWORK_INLINE_LAMBDA {
      const Vec from = set1(widen(b[row])), to = set1(widen(c[row]));
      unroll<VECTORS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
        float* at = state + row * stride + v * kLanes;
        const Vec updated = fma(input[v], from, mul(load(at), decay));
        store(at, updated);
        sums[half][v] = fma(updated, to, sums[half][v]);
      });
    };
    int64_t row = 0;
    for (; row + 2 <= rows; row += 2) {
      advance(row, std::integral_constant<int, 0>());
      advance(row + 1, std::integral_constant<int, 1>());
    }
    for (; row < rows; ++row) advance(row, std::integral_constant<int, 0>());
    const Vec direct = set1(s.d != nullptr ? s.d[head] : 0.0f);
    unroll<VECTORS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      const Vec own_x = load_some(x + v * kLanes, count - v * kLanes);
      store_some(out + v * kLanes, add(add(sums[0][v], sums[1][v]), mul(direct, own_x)), count - v * kLanes);
    });
  }
  if (!copies) return;
  for (int64_t row = 0; row < rows; ++row) {
    unroll<VECTORS>([&](auto v) GRIDWORK_INLINE_LAMBDA {
      const Vec updated = load(state + row * stride + v * kLanes);
      store_some(own + row * s.size + v * kLanes, updated, count - v * kLanes);
    });
  }
}

template <typename T>
void scan_all_heads(const ScanHeads& s) {
  thread_local Scratch scratch;
  float* steps = scratch.floats(static_cast<size_t>(2 * s.tokens * s.heads));
  float* decays = steps + s.tokens * s.heads;
  parallel_for(s.tokens, std::max<int64_t>(1, kTaskWork / (64 * s.heads)), [=, &s](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
      const T* given = static_cast<const T*>(s.step.data) + token * s.step.stride;
      for (int64_t head = 0; head < s.heads; ++head) {
        const float bias = s.bias != nullptr ? s.bias[head] : 0.0f;
        const float step = std::min(s.most, std::max(s.least, step_of<T>(widen(given[head]), bias, s.softplus)));
        steps[token * s.heads + head] = step;
        decays[token * s.heads + head] = std::exp(step * s.a[head]);
      }
    }
  });
  const int64_t blocks = (s.size + kBlock - 1) / kBlock;
  over_sequences(s.states, s.heads * blocks, 2 * kBlock * s.state_size,
                 [=, &s](int64_t sequence, int64_t part, int64_t first, int64_t last) {
                   const int64_t head = part / blocks, begin = part % blocks * kBlock;
                   const int64_t count = std::min(kBlock, s.size - begin);
                   const auto scan = [&](auto vectors) {
                     scan_block<T, vectors>(s, steps, decays, sequence, head, begin, count, first, last);
                   };
                   if (count > 2 * kLanes) scan(std::integral_constant<int, kMaxVectors>());
                   else if (count > kLanes) scan(std::integral_constant<int, 2>());
                   else scan(std::integral_constant<int, 1>());
                 });
}

// Number of channels that a task computes.
constexpr int64_t kChannels = 32;

template <typename T>
void scan_all_channels(const ScanChannels& s) {
  const int64_t blocks = (s.channels + kChannels - 1) / kChannels, n = s.state_size;
  const int64_t work = 8 * kChannels * n;
  over_sequences(s.states, blocks, work, [&](int64_t sequence, int64_t block, int64_t first, int64_t last) {
    const int64_t begin = block * kChannels, end = std::min(s.channels, begin + kChannels);
    float* state = s.pool + s.states.slots[sequence] * s.channels * n;
    if (s.states.fresh[sequence]) std::fill(state + begin * n, state + end * n, 0.0f);
    for (int64_t token = first; token < last; ++token) {
      const T* x = static_cast<const T*>(s.x.data) + token * s.x.stride;
      const T* given = static_cast<const T*>(s.step.data) + token * s.step.stride;
      const T* b = static_cast<const T*>(s.b.data) + token * s.b.stride;
      const T* c = static_cast<const T*>(s.c.data) + token * s.c.stride;
      for (int64_t channel = begin; channel < end; ++channel) {
        const float own_x = widen(x[channel]);
        const float step = step_of<T>(widen(given[channel]), s.bias != nullptr ? s.bias[channel] : 0.0f, s.softplus);
        const Vec steps = set1(step), input = set1(own_x);
        float* at = state + channel * n;
        const float* a = s.a + channel * n;
        Vec sum = zero();
        for (int64_t i = 0; i < n; i += kLanes) {
          const int64_t left = n - i;
          const Vec decay = exp(mul(load_some(a + i, left), steps));
          const Vec change = mul(mul(steps, load_some(b + i, left)), input);
          const Vec updated = add(mul(load_some(at + i, left), decay), change);
          store_some(at + i, updated, left);
          sum = fma(updated, load_some(c + i, left), sum);
        }
        s.out[token * s.channels + channel] = reduce_add(sum) + (s.d != nullptr ? s.d[channel] * own_x : 0.0f);
      }
    }
  });
}

States states_of(const Tensor& starts, const Tensor& slots, const Tensor& fresh) {
  return {slots.size(0), data<int32_t>(starts), data<int64_t>(slots), data<bool>(fresh)};
}

const float* optional_data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data<float>(*tensor) : nullptr;
}

Tensor scan_heads_of(const Tensor x, const Tensor step, const Tensor a, const Tensor b, const Tensor c,
                     const std::optional<Tensor> d, const std::optional<Tensor> bias, bool softplus, double least,
                     double most, const Tensor starts, const Tensor slots, const Tensor fresh, const Tensor pool) {
  Tensor out = torch::stable::new_empty(x, shape(x), ScalarType::Float);
  scan_heads({
      .type = type_of(x),
      .x = {x.data_ptr(), x.stride(0)},
      .step = {step.data_ptr(), step.stride(0)},
      .b = {b.data_ptr(), b.stride(0)},
      .c = {c.data_ptr(), c.stride(0)},
      .a = data<float>(a),
      .d = optional_data(d),
      .bias = optional_data(bias),
      .softplus = softplus,
      .least = static_cast<float>(least),
      .most = static_cast<float>(most),
      .tokens = x.size(0),
      .heads = x.size(1),
      .size = x.size(2),
      .groups = b.size(1),
      .state_size = b.size(2),
      .states = states_of(starts, slots, fresh),
      .pool = mutable_data<float>(pool),
      .out = mutable_data<float>(out),
  });
  return out;
}

Tensor scan_channels_of(const Tensor x, const Tensor step, const Tensor a, const Tensor b, const Tensor c,
                        const std::optional<Tensor> d, const std::optional<Tensor> bias, bool softplus,
                        const Tensor starts, const Tensor slots, const Tensor fresh, const Tensor pool) {
  Tensor out = torch::stable::new_empty(x, shape(x), ScalarType::Float);
  scan_channels({
      .type = type_of(x),
      .x = {x.data_ptr(), x.stride(0)},
      .step = {step.data_ptr(), step.stride(0)},
      .b = {b.data_ptr(), b.stride(0)},
      .c = {c.data_ptr(), c.stride(0)},
      .a = data<float>(a),
      .d = optional_data(d),
      .bias = optional_data(bias),
      .softplus = softplus,
      .channels = x.size(1),
      .state_size = b.size(1),
      .states = states_of(starts, slots, fresh),
      .pool = mutable_data<float>(pool),
      .out = mutable_data<float>(out),
  });
  return out;
}

}  // namespace

void gridwork::scan_heads(const ScanHeads& scan) {
  dispatch_type(scan.type, [&]<typename T>(T*) { scan_all_heads<T>(scan); });
}

void gridwork::scan_channels(const ScanChannels& scan) {
  dispatch_type(scan.type, [&]<typename T>(T*) { scan_all_channels<T>(scan); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def(
      "scan_heads(Tensor x, Tensor step, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? bias, bool softplus, "
      "float least, float most, Tensor starts, Tensor slots, Tensor fresh, Tensor(a!) pool) -> Tensor");
  m.def(
      "scan_channels(Tensor x, Tensor step, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor? bias, bool softplus, "
      "Tensor starts, Tensor slots, Tensor fresh, Tensor(a!) pool) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("scan_heads", TORCH_BOX(&scan_heads_of));
  m.impl("scan_channels", TORCH_BOX(&scan_channels_of));
}
