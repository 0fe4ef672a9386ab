// The loop over sequences that all operations with states share.
#pragma once

#include <algorithm>

#include "common/kernels.h"
#include "common/thread_pool.h"

namespace gridwork {

// Multiplications that are worth a task of another thread.
constexpr int64_t kTaskWork = 1 << 14;

// Calls body(sequence, part, first token, last token) for each part of each sequence that has tokens, from several
// threads. work: multiplications for one token of a part.
template <typename F>
void over_sequences(const States& states, int64_t parts, int64_t work, const F& body) {
  const int64_t tokens = states.starts[states.count];
  const int64_t per_task = std::max<int64_t>(1, work * tokens / std::max<int64_t>(1, states.count));
  const int64_t chunk = std::max<int64_t>(1, kTaskWork / per_task);
  parallel_for(states.count * parts, chunk, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task) {
      const int64_t sequence = task / parts, first = states.starts[sequence], last = states.starts[sequence + 1];
      if (first < last) body(sequence, task % parts, first, last);
    }
  });
}

}  // namespace gridwork
