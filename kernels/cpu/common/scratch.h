// Memory of one thread that is kept from call to call, aligned to cache lines.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace gridwork {

class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  // Memory for `count` floats, with undefined content. Invalidates earlier memory.
  float* floats(size_t count) {
    if (count > size_) {
      std::free(memory_);
      size_ = (count + 1023) / 1024 * 1024;
      memory_ = static_cast<float*>(std::aligned_alloc(64, size_ * sizeof(float)));
      if (memory_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }

 private:
  float* memory_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gridwork
