// Splits the work of a layer over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/kernels.h"
#include "common/thread_pool.h"

namespace gridwork {

// Calls body(begin, end) for pieces of [0, count), which threads take in order. The first pieces are long, for
// sequential reads, and the last ones short, so that threads finish together. All pieces but the last are multiples of
// `least`.
template <typename F>
void parallel_pieces(int64_t count, int64_t least, const F& body) {
  std::vector<int64_t> begins{0};
  while (begins.back() < count) {
    const int64_t left = count - begins.back(), share = left / (2 * num_threads()) / least * least;
    begins.push_back(begins.back() + std::min(left, std::max(least, share)));
  }
  parallel_for(static_cast<int64_t>(begins.size()) - 1, 1, [&](int64_t first, int64_t last) {
    body(begins[static_cast<size_t>(first)], begins[static_cast<size_t>(last)]);
  });
}

// The rows of one group.
struct GroupRows {
  int64_t group, begin, rows;
};

// The groups that have rows, in descending order of rows, so that threads finish together.
inline std::vector<GroupRows> groups_with_rows(const Groups& groups) {
  std::vector<GroupRows> parts;
  for (int64_t group = 0; group < groups.count; ++group) {
    const int64_t begin = groups.begins[group], rows = groups.begins[group + 1] - begin;
    if (rows > 0) parts.push_back({group, begin, rows});
  }
  std::stable_sort(parts.begin(), parts.end(), [](const GroupRows& a, const GroupRows& b) { return a.rows > b.rows; });
  return parts;
}

// Calls body(index of a part, begin, end) for pieces of [0, count) of every part, as parallel_pieces does.
template <typename F>
void parallel_group_pieces(const std::vector<GroupRows>& parts, int64_t count, int64_t least, const F& body) {
  parallel_pieces(static_cast<int64_t>(parts.size()) * count, least, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t at = begin / count, first = begin % count, some = std::min(count - first, end - begin);
      body(static_cast<size_t>(at), first, first + some);
      begin += some;
    }
  });
}

}  // namespace gridwork
