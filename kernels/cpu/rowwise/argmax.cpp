// The largest value of each row, and the index where it occurs first.

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/scratch.h"
#include "common/simd.h"
#include "common/thread_pool.h"

namespace {

using namespace gridwork;

// Number of values of a part, which one thread searches. A vocabulary has many parts.
constexpr int64_t kPart = 4096;
// Maximum number of parts that the calling thread searches alone, in less time than it takes to wake another thread.
constexpr int64_t kFewParts = 64;

// The largest of `count` values, or NaN if any value is NaN.
float largest(const float* values, int64_t count) {
  Vec most = set1(-std::numeric_limits<float>::infinity()), nan = zero();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec v = load(values + i);
    most = max(v, most);
    nan = with_nan_of(v, nan);
  }
  float result = has_nan(nan) ? std::numeric_limits<float>::quiet_NaN() : reduce_max(most);
  for (; i < count && !std::isnan(result); ++i) result = std::isnan(values[i]) ? values[i] : std::max(result, values[i]);
  return result;
}

}  // namespace

// See `gridwork_kernels/argmax.py`. values: [rows, width], rows `stride` values apart.  indices, maxima: [rows].
extern "C" void gridwork_argmax(const float* values, int64_t rows, int64_t width, int64_t stride, int64_t* indices,
                                    float* maxima) {
  const int64_t parts = (width + kPart - 1) / kPart;
  thread_local Scratch scratch;
  float* found = scratch.floats(static_cast<size_t>(rows * parts));
  const auto part_of = [=](int64_t part) { return std::min(kPart, width - part * kPart); };
  const auto look = [=](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task / parts, part = task % parts;
      found[task] = largest(values + row * stride + part * kPart, part_of(part));
    }
  };
  const int64_t tasks = rows * parts;
  if (tasks < kFewParts) look(0, tasks);
  else parallel_for(tasks, std::max<int64_t>(1, tasks / (num_threads() * 8)), look);
  for (int64_t row = 0; row < rows; ++row) {
    const float* of_row = found + row * parts;
    int64_t best = 0;
    for (int64_t part = 1; part < parts && !std::isnan(of_row[best]); ++part) {
      if (of_row[part] > of_row[best] || std::isnan(of_row[part])) best = part;
    }
    const float maximum = of_row[best];
    const float* at = values + row * stride + best * kPart;
    const float* end = at + part_of(best);
    const float* place = std::find_if(at, end, [=](float v) { return v == maximum || std::isnan(v); });
    indices[row] = place - (values + row * stride);
    maxima[row] = maximum;
  }
}
