// AMX: products of tiles of bfloat16, summed in float32.
//
// A tile register holds up to 16 rows of 64 bytes. One tile product adds 16 pairs to the sums of `rows` rows and 16
// features. In x's tile, each row holds 16 consecutive pairs of one row of x. In the weights' tile, each row holds one
// pair of 16 features, which is the layout of packed weights, keys and values. Within a product, the pairs' first and
// second values are summed separately, and both sums are added at its end, so a result is the same for any number of
// rows.
#pragma once

#if defined(__AMX_BF16__)
#define GRIDWORK_AMX 1

#include <cstdint>

#include "common/simd.h"

namespace gridwork {

constexpr int64_t kAmxRows = 16;
constexpr int64_t kAmxLanes = 16;
// Number of pairs that one tile product sums over.
constexpr int64_t kAmxPairs = 16;

// Shapes of the eight tile registers. A thread must set them before it uses the registers.
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
// A thread that holds tiles has more state to save when it loses its core.
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

// While it exists, vector instructions treat subnormal numbers as zero, as AMX does.
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
