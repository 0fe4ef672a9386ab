// What the kernels share of PyTorch's stable ABI.
#pragma once

#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "simd.h"

namespace gridwork {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline std::vector<int64_t> shape(const Tensor& tensor) {
  return std::vector<int64_t>(tensor.sizes().begin(), tensor.sizes().end());
}

// Calls `body` with a null pointer to the C++ type of a tensor's values.
template <typename F>
void by_type(const Tensor& tensor, const F& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16: return body(static_cast<bf16*>(nullptr));
    case ScalarType::Half: return body(static_cast<f16*>(nullptr));
    default: return body(static_cast<float*>(nullptr));
  }
}

}  // namespace gridwork
