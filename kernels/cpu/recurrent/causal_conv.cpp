// Depthwise causal convolutions over the tokens of each sequence, whose last inputs lie in a pool.

#include <optional>

#include "common/scratch.h"
#include "common/tensors.h"
#include "recurrent/sequences.h"
#include "rowwise/activations.h"

namespace {

using namespace gridwork;

// Number of channels that a task computes.
constexpr int64_t kBlock = 8 * kLanes;

// Channels [begin, begin + count) of one sequence's tokens [first, last).
//   SIZE: inputs of an output.
template <typename T, int SIZE>
void convolve(const CausalConv& c, int64_t sequence, int64_t begin, int64_t count, int64_t first, int64_t last) {
  constexpr int kPast = SIZE - 1;
  const T* weight = static_cast<const T*>(c.weight) + begin * SIZE;
  T* state = static_cast<T*>(c.pool) + c.states.slots[sequence] * kPast * c.channels + begin;
  alignas(64) float weights[SIZE][kBlock], bias[kBlock] = {}, past[kPast][kBlock] = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int j = 0; j < SIZE; ++j) weights[j][i] = widen(weight[i * SIZE + j]);
    if (c.bias != nullptr) bias[i] = widen(static_cast<const T*>(c.bias)[begin + i]);
    if (!c.states.fresh[sequence]) {
      for (int j = 0; j < kPast; ++j) past[j][i] = widen(state[j * c.channels + i]);
    }
  }
  const T* type = nullptr;
  const Silu<T> silu;
  for (int64_t token = first; token < last; ++token) {
    const T* x = static_cast<const T*>(c.x.data) + token * c.x.stride + begin;
    T* out = static_cast<T*>(c.out) + token * c.channels + begin;
    for (int64_t i = 0; i < count; i += kLanes) {
      const Vec input = load_some(x + i, count - i);
      Vec sum = load(bias + i);
      unroll<kPast>([&](auto j) GRIDWORK_INLINE_LAMBDA { sum = fma(load(weights[j] + i), load(past[j] + i), sum); });
      sum = rounded(fma(load(weights[kPast] + i), input, sum), type);
      unroll<kPast - 1>([&](auto j) GRIDWORK_INLINE_LAMBDA { store(past[j] + i, load(past[j + 1] + i)); });
      store(past[kPast - 1] + i, input);
      store_some(out + i, c.silu ? silu(sum) : sum, count - i);
    }
  }
  for (int j = 0; j < kPast; ++j) {
    for (int64_t i = 0; i < count; i += kLanes) store_some(state + j * c.channels + i, load(past[j] + i), count - i);
  }
}

template <int SIZE>
void convolve_all(const CausalConv& c) {
  dispatch_type(c.type, [&]<typename T>(T*) {
    const int64_t blocks = (c.channels + kBlock - 1) / kBlock;
    over_sequences(c.states, blocks, kBlock * SIZE,
                   [&](int64_t sequence, int64_t block, int64_t first, int64_t last) {
                     const int64_t begin = block * kBlock;
                     convolve<T, SIZE>(c, sequence, begin, std::min(kBlock, c.channels - begin), first, last);
                   });
  });
}

States states_of(const Tensor& starts, const Tensor& slots, const Tensor& fresh) {
  return {slots.size(0), data<int32_t>(starts), data<int64_t>(slots), data<bool>(fresh)};
}

Tensor causal_conv_of(const Tensor x, const Tensor weight, const std::optional<Tensor> bias, bool silu,
                      const Tensor starts, const Tensor slots, const Tensor fresh, const Tensor pool) {
  Tensor out = torch::stable::new_empty(x, shape(x));
  causal_conv({
      .type = type_of(x),
      .x = {x.data_ptr(), x.stride(0)},
      .weight = weight.data_ptr(),
      .bias = bias.has_value() ? bias->data_ptr() : nullptr,
      .silu = silu,
      .channels = x.size(1),
      .size = weight.size(1),
      .states = states_of(starts, slots, fresh),
      .pool = pool.data_ptr(),
      .out = out.data_ptr(),
  });
  return out;
}

}  // namespace

void gridwork::causal_conv(const CausalConv& conv) {
  switch (conv.size) {
    case 2: return convolve_all<2>(conv);
    case 3: return convolve_all<3>(conv);
    case 4: return convolve_all<4>(conv);
    case 5: return convolve_all<5>(conv);
    case 6: return convolve_all<6>(conv);
    case 7: return convolve_all<7>(conv);
    default: return convolve_all<kMaxConvSize>(conv);
  }
}

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def(
      "causal_conv(Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor starts, Tensor slots, Tensor fresh, "
      "Tensor(a!) pool) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) { m.impl("causal_conv", TORCH_BOX(&causal_conv_of)); }
