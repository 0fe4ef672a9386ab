// The kernels as functions on plain memory, called by the operations of `gridwork_cpu` and by recorded programs.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "program_table.def"

namespace gridwork {

#define GRIDWORK_NAME(name) name,
// Data types of values in memory.
enum class Type : int64_t { GRIDWORK_TYPES(GRIDWORK_NAME) };
// Activation functions; see `program_table.def`.
enum class Activation : int64_t { GRIDWORK_ACTIVATIONS(GRIDWORK_NAME) };
// Kind of normalisation; see `program_table.def`.
enum class NormKind : int64_t { GRIDWORK_NORMS(GRIDWORK_NAME) };
#undef GRIDWORK_NAME

// Calls `body` with a null pointer to the C++ type.
template <typename F>
void dispatch_type(Type type, const F& body) {
  switch (type) {
    case Type::bfloat16: return body(static_cast<bf16*>(nullptr));
    case Type::float16: return body(static_cast<f16*>(nullptr));
    default: return body(static_cast<float*>(nullptr));
  }
}

// Packed weights of a linear layer; linear.cpp describes the layout.
struct PackedWeights {
  Type type;
  const void* values;
  int64_t num_panels;
  int64_t groups;     // groups of contiguous k
  int64_t features;   // of the output
  const float* bias;  // [features] or null

  // The weights of another layer of the same shape, which follow in memory. group_values: number of values in a group.
  PackedWeights of(int64_t layer, int64_t group_values) const {
    const int64_t bytes = num_panels * groups * group_values * (type == Type::float32 ? 4 : 2);
    return {type,   static_cast<const char*>(values) + layer * bytes,  num_panels, groups, features,
            bias == nullptr ? nullptr : bias + layer * features};
  }
};

// x: [rows, K] in `type`.  out: [rows, features] in `type`, or in float32.
void linear(Type type, const void* x, int64_t rows, int64_t K, const PackedWeights& weights, void* out,
            bool float32_out);

// Groups of rows, each with its own weights: group i has the rows [begins[i], begins[i + 1]).
struct Groups {
  int64_t count;
  const int64_t* begins;
};

// Several layers of the same shape, whose weights and biases are contiguous; `weights` are the first layer's.
// x: [rows, K] in `type`, which is also the weights' type.  out: [rows, features].
void grouped_linear(Type type, const void* x, const Groups& groups, int64_t K, const PackedWeights& weights, void* out);

// activation(gate) * up, where gate and up are the two halves of a linear layer's features, each rounded to `type`.
// Both halves are whole panels. kind: see gated_activation. halves: memory for [rows, features].
//   out: [rows, features / 2] in `type`.
void gated_linear(Type type, const void* x, int64_t rows, int64_t K, const PackedWeights& weights, Activation kind,
                  void* halves, void* out);

// Quantized weights of a linear layer; quantized_linear.cpp describes the layout.
struct QuantizedWeights {
  bool four_bits;
  const void* values;
  const void* scales;
  int64_t num_panels;
  int64_t features;
  const float* bias;
};

void quantized_linear(Type type, const void* x, int64_t rows, int64_t K, const QuantizedWeights& weights, void* out,
                      bool float32_out);

// See grouped_linear.
void grouped_quantized_linear(Type type, const void* x, const Groups& groups, int64_t K,
                              const QuantizedWeights& weights, void* out);

// Rows of contiguous values, `stride` values apart.
struct Rows {
  const void* data;
  int64_t stride;
};

// A norm of rows of `width` values. Its results are contiguous.
struct Norm {
  NormKind kind;
  const void* weight;  // may be null, as the bias may, for layer norms only
  const void* bias;
  int64_t width;
  float eps;
};

// parts: number of rows of `width` in each of the `count` rows of x.
void normalise(Type type, const Rows& x, int64_t count, int64_t parts, const Norm& norm, void* out);

// Sets total = a + b, and out to the norm of total.
void add_and_normalise(Type type, const Rows& a, const Rows& b, int64_t count, const Norm& norm, void* total,
                       void* out);

// A norm of rows in groups of `width` values, and their product with an activation of a gate. The gate multiplies the
// values before the norm, or the result. Values that are not in float32 are rounded after the norm and after its weight.
struct GatedNorm {
  Type type;           // of gate, weight, and of x and out where these are not float32
  bool float32_in, float32_out;
  bool gate_first;
  Activation activation;  // SiLU or sigmoid
  Rows x, gate;
  const void* weight;  // of all groups of a part, one after another
  int64_t count, parts, groups, width;
  float eps;
  void* out;  // contiguous
};

// Rows of `parts` parts, each of `groups` groups of `width` values.
void gated_norm(const GatedNorm& norm);

// factor * softplus(x + bias), in float32; x of rows of `width`.
void softplus_scaled(Type type, const Rows& x, int64_t count, int64_t width, const float* bias, const float* factor,
                     float* out);

// a + b of rows of `width`.
void add(Type type, const Rows& a, const Rows& b, int64_t count, int64_t width, void* out);

// a * b of rows of `width`.
void multiply(Type type, const Rows& a, const Rows& b, int64_t count, int64_t width, void* out);

// From `type` to float32, or from float32 to `type`.
void convert(Type type, const Rows& x, int64_t count, int64_t width, bool widens, void* out);

// activation(gate) * up, of a kind that gates.
void gated_activation(Type type, const Rows& gate, const Rows& up, int64_t count, int64_t width, Activation kind,
                      void* out);

// activation(x), of any kind.
void activation(Type type, const Rows& x, int64_t count, int64_t width, Activation kind, void* out);

// x * factor, or x / factor.
void scale(Type type, const Rows& x, int64_t count, int64_t width, float factor, bool divide, void* out);

// See `gridwork_kernels/cpu_attention.py` for shapes and meaning; strides are in values.
struct Attention {
  Type type;
  const void* query;
  int64_t query_token_stride, query_head_stride;
  const void* key;  // null where keys and values are in the cache already
  int64_t key_token_stride, key_head_stride;
  const void* value;
  int64_t value_token_stride, value_head_stride;
  void* keys;
  void* values;
  int64_t keys_block_stride, keys_head_stride, values_block_stride, values_head_stride;
  void* out;
  const int32_t* tables;
  int64_t table_stride;
  const int32_t* sequence;
  const int32_t* length;
  const int64_t* slots;
  const void* cos;  // [tokens, rotary_size], or null
  const void* sin;
  int64_t rotary_stride, rotary_size;
  bool rotary_float32, rotary_interleaved;  // see Rotary
  const float* sinks;
  const float* slopes;
  int64_t tokens, query_heads, kv_heads, key_size, value_size, block_size, window, chunk;
  float scale, softcap;
};

void paged_attention(const Attention& attention);

// The sequences of a flat batch, and the slots of a pool that hold their states.
struct States {
  int64_t count;
  const int32_t* starts;  // [count + 1]: tokens before each sequence's
  const int64_t* slots;   // [count]
  const bool* fresh;      // [count]: the sequence begins, so that its state is zero whatever its slot holds
};

// See `gridwork_kernels/causal_conv.py` for shapes and meaning; out is contiguous.
struct CausalConv {
  Type type;
  Rows x;
  const void* weight;  // [channels, size]
  const void* bias;    // [channels], or null
  bool silu;
  int64_t channels, size;
  States states;
  void* pool;
  void* out;
};

// Largest `size` of a convolution.
constexpr int64_t kMaxConvSize = 8;

void causal_conv(const CausalConv& conv);

// See `gridwork_kernels/gated_delta.py`. Heads of a row are contiguous, as is out.
struct GatedDelta {
  Type type;  // of query, key, value and out
  Rows query, key, value;
  Rows decay;  // float32: of each value head, or of each of its `key_size` dimensions
  bool decay_of_dimensions;
  Rows beta;  // float32
  bool normalise;
  int64_t tokens, key_heads, value_heads, key_size, value_size;
  States states;
  float* pool;
  void* out;
};

void gated_delta(const GatedDelta& delta);

// See `gridwork_kernels/selective_scan.py`. out is float32 and contiguous.
struct ScanHeads {
  Type type;  // of x, step, b and c
  Rows x, step, b, c;
  const float* a;     // [heads]
  const float* d;     // [heads], or null
  const float* bias;  // [heads], or null
  bool softplus;
  float least, most;  // limits of a step
  int64_t tokens, heads, size, groups, state_size;
  States states;
  float* pool;
  float* out;
};

void scan_heads(const ScanHeads& scan);

struct ScanChannels {
  Type type;  // of x, step, b and c
  Rows x, step, b, c;
  const float* a;     // [channels, state_size]
  const float* d;     // [channels], or null
  const float* bias;  // [channels], or null
  bool softplus;
  int64_t channels, state_size;
  States states;
  float* pool;
  float* out;
};

void scan_channels(const ScanChannels& scan);

}  // namespace gridwork
