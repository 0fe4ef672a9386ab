// The matrix unit of CPUs that have one (AMX): products of tiles of bfloat16, summed in float32.
//
// A tile register holds up to 16 rows of 64 bytes. One product adds, to the sums of `rows` rows and 16 features, those
// of 16 pairs: x's tile has a row of 16 consecutive pairs for each row, the weights' tile a row of 16 features' pairs
// for each pair, which is how packed weights, keys and values lie. Sums of the pairs' first and second values are kept
// apart within a product and added to the result at its end, so that a result is the same for any number of rows.
#pragma once

#if defined(__AMX_BF16__)
#define GRIDWORK_AMX 1

#include <cstdint>

#include "common/simd.h"

namespace gridwork {

constexpr int64_t kAmxRows = 16;
constexpr int64_t kAmxLanes = 16;
// Pairs that one product sums over.
constexpr int64_t kAmxPairs = 16;

// What the eight tile registers hold: a thread sets it before it uses them.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t num_rows, int64_t bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows), row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

GRIDWORK_INLINE void configure_tiles(const TileConfig& shape) { asm volatile("ldtilecfg %0" : : "m"(shape)); }
// A thread that keeps tiles in use has more to save when it loses its core.
GRIDWORK_INLINE void release_tiles() { asm volatile("tilerelease"); }

template <int TILE>
GRIDWORK_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}
// Rows `stride` bytes apart.
template <int TILE>
GRIDWORK_INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
GRIDWORK_INLINE void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(TILE) : "memory");
}
template <int SUM, int X, int WEIGHTS>
GRIDWORK_INLINE void add_tile_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(X), "i"(WEIGHTS));
}

// While it lives, vectors take numbers too small for a normal float32 for zero, as the unit does.
class FlushDenormals {
 public:
  FlushDenormals() { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON); }
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned before_ = _mm_getcsr();
};

}  // namespace gridwork
#endif
