// Logits of the tokens that a mask forbids.

#include <algorithm>
#include <limits>

#include "common/simd.h"
#include "common/thread_pool.h"

namespace {

using namespace gridwork;

// Tokens of a word of a mask.
constexpr int64_t kWord = 32;
// Maximum number of rows that the calling thread changes alone, in less time than it takes to wake another thread.
constexpr int64_t kFewRows = 3;
constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

// NaN stays: no comparison with it is true.
float at_least_lowest(float v) { return v < kLowest ? kLowest : v; }

// One row: `width` logits, and the `words` words of its mask.
void forbid(float* logits, int64_t width, const uint32_t* allowed, int64_t words) {
  const int64_t whole = std::min(words, width / kWord);
  const Vec forbidden = set1(kForbidden), lowest = set1(kLowest);
  for (int64_t word = 0; word < whole; ++word) {
    float* at = logits + word * kWord;
    const uint32_t bits = allowed[word];
    if (bits == 0) {
      for (int64_t i = 0; i < kWord; i += kLanes) store(at + i, forbidden);
    } else if (bits == ~0u) {
      for (int64_t i = 0; i < kWord; i += kLanes) store(at + i, max(lowest, load(at + i)));
    } else {
      for (int64_t i = 0; i < kWord; i += kLanes) {
        store(at + i, lanes_of(bits >> i, max(lowest, load(at + i)), forbidden));
      }
    }
  }
  for (int64_t token = whole * kWord; token < width; ++token) {
    const int64_t word = token / kWord;
    const bool is_allowed = word < words && (allowed[word] >> (token % kWord) & 1);
    logits[token] = is_allowed ? at_least_lowest(logits[token]) : kForbidden;
  }
}

}  // namespace

// See `gridwork_kernels/token_masks.py`. logits: rows of `width` values, `stride` values apart. rows: [count], each once.
// allowed: [count, words].
extern "C" void gridwork_forbid_tokens(float* logits, int64_t width, int64_t stride, const int64_t* rows, int64_t count,
                                       const uint32_t* allowed, int64_t words) {
  const auto run = [=](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) forbid(logits + rows[i] * stride, width, allowed + i * words, words);
  };
  if (count <= kFewRows) run(0, count);
  else parallel_for(count, std::max<int64_t>(1, count / (num_threads() * 4)), run);
}
