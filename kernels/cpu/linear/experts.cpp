// Mixtures of experts, in which each token passes through some of the layers (Shazeer et al. 2017, "Outrageously Large
// Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer").
//
// A pair is a token and one of its experts. Between the two layers of the experts, each row belongs to one pair. Rows
// are sorted by expert, and the rows of one expert by token. A pair's result does not depend on the other pairs.

#include <algorithm>
#include <optional>
#include <vector>

#include "common/scratch.h"
#include "common/simd.h"
#include "common/tensors.h"
#include "common/thread_pool.h"

namespace {

using namespace gridwork;

constexpr int64_t kChunkValues = 16384;

// Sorts pairs by expert.
class Routing {
 public:
  // index: int64 [tokens, chosen]. Pairs whose expert does not exist belong to no group, and their rows come last.
  Routing(const Tensor& index, int64_t experts)
      : chosen_(index.size(-1)), begins_(static_cast<size_t>(experts + 1)), row_(static_cast<size_t>(index.numel())) {
    const int64_t* expert = data<int64_t>(index);
    const auto group = [&](size_t pair) {
      return static_cast<size_t>(expert[pair] >= 0 && expert[pair] < experts ? expert[pair] : experts);
    };
    std::vector<int64_t> next(static_cast<size_t>(experts + 2));
    for (size_t pair = 0; pair < row_.size(); ++pair) ++next[group(pair) + 1];
    for (size_t i = 1; i < next.size(); ++i) next[i] += next[i - 1];
    std::copy_n(next.begin(), begins_.size(), begins_.begin());
    for (size_t pair = 0; pair < row_.size(); ++pair) row_[pair] = next[group(pair)]++;
  }

  Groups groups() const { return {static_cast<int64_t>(begins_.size()) - 1, begins_.data()}; }
  int64_t pairs() const { return static_cast<int64_t>(row_.size()); }
  int64_t tokens() const { return pairs() / chosen_; }
  int64_t chosen() const { return chosen_; }
  // Number of pairs whose expert exists; their rows come first.
  int64_t rows() const { return begins_.back(); }
  int64_t row(int64_t token, int64_t which) const { return row_[static_cast<size_t>(token * chosen_ + which)]; }

 private:
  int64_t chosen_;
  std::vector<int64_t> begins_, row_;
};

// The first or the second linear layer, for all experts.
struct Layer {
  // Weights of all experts: in x's type, packed as in linear.cpp; or, with scales, packed as in quantized_linear.cpp,
  // 8 bits as int8 and 4 bits as uint8.
  Tensor packed;
  std::optional<Tensor> scales;
  std::optional<Tensor> bias;  // float32 [experts, features]
  int64_t features;

  // x: [pairs, K], sorted by expert.  out: [pairs, features].
  void multiply(Type type, const void* x, const Groups& groups, int64_t K, void* out) const {
    const float* added = bias.has_value() ? data<float>(*bias) : nullptr;
    if (scales.has_value()) {
      const bool four_bits = packed.scalar_type() == ScalarType::Byte;
      return grouped_quantized_linear(
          type, x, groups, K, {four_bits, packed.data_ptr(), scales->data_ptr(), packed.size(1), features, added}, out);
    }
    grouped_linear(type, x, groups, K,
                   {type_of(packed), packed.data_ptr(), packed.size(1), packed.size(2), features, added}, out);
  }
};

// x: [tokens, K].  index: int64 [tokens, chosen].  For the others see Layer.  Returns [pairs, features] in x's type.
Tensor experts_in_of(const Tensor x, const Tensor index, const Tensor packed, std::optional<Tensor> scales,
                     std::optional<Tensor> bias, int64_t features) {
  const Tensor values = torch::stable::contiguous(x), experts = torch::stable::contiguous(index);
  const Routing routing(experts, packed.size(0));
  const int64_t K = values.size(-1), pairs = routing.pairs();
  Tensor out = torch::stable::new_empty(values, {pairs, features});
  if (pairs == 0) return out;
  dispatch_type(type_of(values), [&]<typename T>(T*) {
    thread_local Scratch scratch;
    T* rows = reinterpret_cast<T*>(scratch.floats((static_cast<size_t>(pairs * K) * sizeof(T) + 3) / 4));
    const T* from = data<T>(values);
    parallel_for(routing.tokens(), std::max<int64_t>(1, kChunkValues / K), [&](int64_t first, int64_t last) {
      for (int64_t token = first; token < last; ++token) {
        for (int64_t which = 0; which < routing.chosen(); ++which) {
          std::copy_n(from + token * K, K, rows + routing.row(token, which) * K);
        }
      }
    });
    Layer{packed, scales, bias, features}.multiply(type_of(values), rows, routing.groups(), K, out.data_ptr());
    T* none = mutable_data<T>(out) + routing.rows() * features;
    std::fill_n(none, (pairs - routing.rows()) * features, T{});
  });
  return out;
}

// Sets out[token] to the weighted sum of its pairs' rows. Products are rounded to W, and summed in float32.
//   rows: [pairs, width].  weights: [tokens, chosen].  out: [tokens, width].
template <typename T, typename W>
void sum_pairs(const Routing& routing, const T* rows, const W* weights, int64_t width, T* out) {
  const int64_t chosen = routing.chosen();
  parallel_for(routing.tokens(), std::max<int64_t>(1, kChunkValues / (width * chosen)), [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
      for (int64_t i = 0; i < width; i += kLanes) {
        Vec sum = zero();
        for (int64_t which = 0; which < chosen; ++which) {
          const int64_t row = routing.row(token, which);
          if (row >= routing.rows()) continue;
          const Vec value = load_some(rows + row * width + i, width - i);
          sum = add(sum, rounded(mul(value, set1(widen(weights[token * chosen + which]))), weights));
        }
        store_some(out + token * width + i, sum, width - i);
      }
    }
  });
}

// x: [pairs, K], as returned by experts_in.  weights: [tokens, chosen], in x's type or float32.  Returns [tokens,
// features].
Tensor experts_out_of(const Tensor x, const Tensor index, const Tensor weights, const Tensor packed,
                      std::optional<Tensor> scales, std::optional<Tensor> bias, int64_t features) {
  const Tensor values = torch::stable::contiguous(x), experts = torch::stable::contiguous(index);
  const Tensor factors = torch::stable::contiguous(weights);
  const Routing routing(experts, packed.size(0));
  Tensor out = torch::stable::new_empty(values, {routing.tokens(), features});
  if (routing.pairs() == 0) return out;
  dispatch_type(type_of(values), [&]<typename T>(T*) {
    thread_local Scratch scratch;
    const size_t room = static_cast<size_t>(routing.pairs() * features);
    T* rows = reinterpret_cast<T*>(scratch.floats((room * sizeof(T) + 3) / 4));
    Layer{packed, scales, bias, features}.multiply(type_of(values), values.data_ptr(), routing.groups(),
                                                   values.size(-1), rows);
    if (type_of(factors) == Type::float32) sum_pairs(routing, rows, data<float>(factors), features, mutable_data<T>(out));
    else sum_pairs(routing, rows, data<T>(factors), features, mutable_data<T>(out));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gridwork_cpu, m) {
  m.def(
      "experts_in(Tensor x, Tensor index, Tensor packed, Tensor? scales, Tensor? bias, int out_features) -> Tensor");
  m.def(
      "experts_out(Tensor x, Tensor index, Tensor weights, Tensor packed, Tensor? scales, Tensor? bias, "
      "int out_features) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gridwork_cpu, CPU, m) {
  m.impl("experts_in", TORCH_BOX(&experts_in_of));
  m.impl("experts_out", TORCH_BOX(&experts_out_of));
}
