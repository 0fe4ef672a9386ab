#include "common/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gridwork {
namespace {

using Clock = std::chrono::steady_clock;

// Time for which a worker polls for the next loop before it sleeps. Loops of one forward pass follow each other within
// some tens of microseconds, and waking a thread takes as long.
constexpr auto kSpin = std::chrono::microseconds(100);
// Number of polls between reads of the clock.
constexpr int kLooks = 64;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

class Pool {
 public:
  int64_t threads() const { return threads_.load(std::memory_order_relaxed); }

  // Workers beyond the number stay asleep: they compare their index with it before they take a chunk.
  void set_threads(int64_t count) {
    std::lock_guard lock(mutex_);
    for (; started_ < count - 1; ++started_) std::thread([this, index = started_] { work(index); }).detach();
    threads_.store(std::max<int64_t>(1, count), std::memory_order_relaxed);
  }

  void run(int64_t count, int64_t chunk, void (*body)(void*, int64_t, int64_t), void* context) {
    const int64_t chunks = (count + chunk - 1) / chunk;
    if (chunks <= 1 || threads() == 1 || busy_.test_and_set(std::memory_order_acquire)) {
      if (count > 0) body(context, 0, count);
      return;
    }
    // All chunks of the previous loop are done, so no thread reads these fields.
    body_.store(body, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    chunk_.store(chunk, std::memory_order_relaxed);
    chunks_.store(static_cast<uint32_t>(chunks), std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint32_t loop = ++loop_;
    ticket_.store(static_cast<uint64_t>(loop) << 32 | static_cast<uint32_t>(chunks), std::memory_order_release);
    published_.store(loop, std::memory_order_release);
    published_.notify_all();
    take(loop);
    wait(static_cast<uint32_t>(chunks));
    busy_.clear(std::memory_order_release);
  }

 private:
  // Takes chunks of a loop until none is left.
  void take(uint32_t loop) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(ticket >> 32) == loop) {
      const auto left = static_cast<uint32_t>(ticket);
      if (left == 0) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      // The loop cannot end before this chunk is done, so the fields below belong to it.
      const uint32_t chunks = chunks_.load(std::memory_order_relaxed), index = chunks - left;
      const int64_t count = count_.load(std::memory_order_relaxed), chunk = chunk_.load(std::memory_order_relaxed);
      auto* body = body_.load(std::memory_order_relaxed);
      body(context_.load(std::memory_order_relaxed), index * chunk, std::min(count, (index + 1) * chunk));
      if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks) done_.notify_one();
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  // Waits until every chunk is done. Other threads may still compute chunks, or may have lost their core.
  void wait(uint32_t chunks) {
    const auto start = Clock::now();
    while (true) {
      for (int look = 0; look < kLooks; ++look) {
        if (done_.load(std::memory_order_acquire) == chunks) return;
        pause();
      }
      if (Clock::now() - start > kSpin) break;
    }
    for (uint32_t done; (done = done_.load(std::memory_order_acquire)) != chunks;) done_.wait(done);
  }

  void work(int64_t index) {
    uint32_t seen = published_.load(std::memory_order_acquire);
    auto since = Clock::now();
    while (true) {
      const uint32_t loop = published_.load(std::memory_order_acquire);
      if (loop != seen && index < threads() - 1) {
        seen = loop;
        take(loop);
        since = Clock::now();
        continue;
      }
      seen = loop;
      if (index >= threads() - 1 || Clock::now() - since > kSpin) {
        published_.wait(seen);
        since = Clock::now();
        continue;
      }
      for (int look = 0; look < kLooks && published_.load(std::memory_order_acquire) == seen; ++look) pause();
    }
  }

  std::mutex mutex_;
  int64_t started_ = 0;
  std::atomic<int64_t> threads_{1};

  // The current loop: written before `ticket_`, and read by threads that have claimed a chunk of it.
  std::atomic<void (*)(void*, int64_t, int64_t)> body_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> count_{0}, chunk_{1};
  std::atomic<uint32_t> chunks_{0};
  uint32_t loop_ = 0;
  // Set while a loop runs. A second caller runs its loop alone.
  std::atomic_flag busy_;

  // Upper half: number of the loop. Lower half: number of unclaimed chunks.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
  // Number of the last loop; sleeping workers wait for it to change.
  alignas(64) std::atomic<uint32_t> published_{0};
};

// The pool is never destroyed: its threads run until the process ends.
Pool& pool() {
  static Pool* pool = new Pool;
  return *pool;
}

}  // namespace

void parallel_for(int64_t count, int64_t chunk, void (*run)(void*, int64_t, int64_t), void* context) {
  pool().run(count, chunk, run, context);
}

int64_t num_threads() { return pool().threads(); }

}  // namespace gridwork

extern "C" void gridwork_set_num_threads(int64_t count) { gridwork::pool().set_threads(count); }
