// How a layer is shared out between threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "thread_pool.h"

namespace gridwork {

// Calls body(begin, end) for pieces of [0, count), which threads take one after the other: long ones at first, for
// reading on in memory, and short ones in the end, so that threads end together. They are multiples of `least`, but the
// last.
template <typename F>
void in_pieces(int64_t count, int64_t least, const F& body) {
  std::vector<int64_t> begins{0};
  while (begins.back() < count) {
    const int64_t left = count - begins.back(), share = left / (2 * num_threads()) / least * least;
    begins.push_back(begins.back() + std::min(left, std::max(least, share)));
  }
  parallel_for(static_cast<int64_t>(begins.size()) - 1, 1, [&](int64_t first, int64_t last) {
    body(begins[static_cast<size_t>(first)], begins[static_cast<size_t>(last)]);
  });
}

}  // namespace gridwork
