// A pool of threads that run the chunks of one loop at a time.
//
// OpenMP gives every thread a fixed share and waits for the slowest: when another process has taken a core, each of a
// model's hundreds of short loops waits until that core is free again. Here a thread that is ready, or the caller,
// takes the next chunk, so that nothing waits for a thread that is not running.
#pragma once

#include <cstdint>

namespace gridwork {

// Calls `run(context, first, last)` for consecutive ranges of at most `chunk` that together are [0, count), from
// several threads at once, and returns when all calls have returned. `run` must not throw.
void parallel_for(int64_t count, int64_t chunk, void (*run)(void*, int64_t, int64_t), void* context);

// The same, for a lambda.
template <typename F>
void parallel_for(int64_t count, int64_t chunk, const F& body) {
  parallel_for(
      count, chunk, [](void* f, int64_t first, int64_t last) { (*static_cast<const F*>(f))(first, last); },
      const_cast<F*>(&body));
}

// Number of threads that run loops, the caller included; at least 1.
int64_t num_threads();

}  // namespace gridwork

extern "C" void gridwork_set_num_threads(int64_t count);
