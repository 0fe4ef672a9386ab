// Operations of a forward pass, one after the other, in one call: without Python, PyTorch's dispatcher and its
// allocator between them.
//
// A program is a list of whole numbers, which `gridwork_server/graph/native.py` writes. It names memory by slots: the
// first `num_external` are given with each call, the others are parts of memory of the program's own. An operand is
// (slot, offset, stride): the first token's values begin `offset` values behind the slot's start, and each other
// token's `stride` values later. A floating-point number stands as the bits of a double.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "scratch.h"
#include "thread_pool.h"

namespace {

using namespace gridwork;

enum Operation : int64_t {
  kLinear,
  kQuantizedLinear,
  kNorm,
  kAddNorm,
  kAdd,
  kGatedActivation,
  kAttention,
  kGatedLinear,
  kEmbedding,
  kActivation,
  kScale,
  kCount
};

// Where a step's tokens lie in the cache; as in `PagedLayout`.
struct Layout {
  const int32_t* tables;
  int64_t table_stride;
  const int32_t* sequence;
  const int32_t* length;
  const int64_t* slots;
};

// What comes with each call.
struct Call {
  int64_t tokens;
  Layout layouts[2];
  void* external[];
};

struct Times {
  double seconds[kCount] = {};
  int64_t calls[kCount] = {};
};

// Of all programs; only while it is asked for.
Times* times = nullptr;

size_t value_bytes(Type type) { return type == Type::float32 ? 4 : 2; }

// Tokens whose values fill whole cache lines, whatever their size.
constexpr int64_t kTokensTogether = 64;

struct Program {
  std::vector<int64_t> code;
  int64_t num_external;
  std::vector<int64_t> places;  // of the slots of our own: bytes before them, for each token
  int64_t own_bytes;            // for each token
  Scratch own;
};

// Reads a program's numbers one by one.
class Reader {
 public:
  Reader(Program& program, const Call& call)
      : at_(program.code.data()), end_(at_ + program.code.size()), program_(program), call_(call) {
    const int64_t rounded = (call.tokens + kTokensTogether - 1) / kTokensTogether * kTokensTogether;
    const auto bytes = static_cast<size_t>(program.own_bytes * rounded);
    own_ = reinterpret_cast<char*>(program.own.floats(bytes / sizeof(float)));
    tokens_ = rounded;
  }

  bool done() const { return at_ == end_; }
  int64_t number() { return *at_++; }
  double real() {
    double value;
    std::memcpy(&value, at_++, sizeof value);
    return value;
  }
  template <typename T>
  T* pointer() {
    return reinterpret_cast<T*>(*at_++);
  }

  Rows rows(Type type) {
    const int64_t slot = number(), offset = number(), stride = number();
    return {memory(slot) + offset * static_cast<int64_t>(value_bytes(type)), stride};
  }
  // Results, and what the step gives, are contiguous.
  void* result() { return memory(number()); }
  const Layout& layout() { return call_.layouts[number()]; }

 private:
  char* memory(int64_t slot) {
    if (slot < program_.num_external) return static_cast<char*>(call_.external[slot]);
    return own_ + program_.places[static_cast<size_t>(slot - program_.num_external)] * tokens_;
  }

  const int64_t* at_;
  const int64_t* end_;
  Program& program_;
  const Call& call_;
  char* own_;
  int64_t tokens_;
};

// Rows of a table, `bytes` each. A number that the table does not have gives NaN, in every type: its sequence fails,
// and no other.
void embedding(const int64_t* ids, int64_t tokens, const char* table, int64_t count, int64_t bytes, char* out) {
  constexpr int64_t kChunkBytes = 1 << 15;
  parallel_for(tokens, std::max<int64_t>(1, kChunkBytes / bytes), [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
      char* to = out + token * bytes;
      const bool there = ids[token] >= 0 && ids[token] < count;
      if (there) std::memcpy(to, table + ids[token] * bytes, static_cast<size_t>(bytes));
      else std::memset(to, 0xff, static_cast<size_t>(bytes));
    }
  });
}

void run_embedding(Reader& in, Type type, int64_t tokens) {
  const auto* ids = static_cast<const int64_t*>(in.result());
  const auto* table = in.pointer<const char>();
  const int64_t count = in.number(), bytes = in.number() * static_cast<int64_t>(value_bytes(type));
  auto* out = static_cast<char*>(in.result());
  embedding(ids, tokens, table, count, bytes, out);
}

PackedWeights read_weights(Reader& in) {
  const auto type = static_cast<Type>(in.number());
  const void* values = in.pointer<const void>();
  const int64_t num_panels = in.number(), groups = in.number(), features = in.number();
  return {type, values, num_panels, groups, features, in.pointer<const float>()};
}

void run_linear(Reader& in, Type type, int64_t tokens) {
  const Rows x = in.rows(type);
  void* out = in.result();
  const int64_t parts = in.number(), K = in.number(), float32_out = in.number();
  linear(type, x.data, tokens * parts, K, read_weights(in), out, float32_out != 0);
}

void run_gated_linear(Reader& in, Type type, int64_t tokens) {
  const Rows x = in.rows(type);
  void* halves = in.result();
  void* out = in.result();
  const int64_t K = in.number(), kind = in.number();
  gated_linear(type, x.data, tokens, K, read_weights(in), kind, halves, out);
}

void run_quantized_linear(Reader& in, Type type, int64_t tokens) {
  const Rows x = in.rows(type);
  void* out = in.result();
  const int64_t parts = in.number(), K = in.number(), float32_out = in.number();
  const bool four_bits = in.number() != 0;
  const void* values = in.pointer<const void>();
  const void* scales = in.pointer<const void>();
  const int64_t num_panels = in.number(), features = in.number();
  const QuantizedWeights weights{four_bits, values, scales, num_panels, features, in.pointer<const float>()};
  quantized_linear(type, x.data, tokens * parts, K, weights, out, float32_out != 0);
}

Norm read_norm(Reader& in) {
  const auto kind = static_cast<NormKind>(in.number());
  const void* weight = in.pointer<const void>();
  const void* bias = in.pointer<const void>();
  const int64_t width = in.number();
  return {kind, weight, bias, width, static_cast<float>(in.real())};
}

void run_norm(Reader& in, Type type, int64_t tokens) {
  const Rows x = in.rows(type);
  void* out = in.result();
  const int64_t parts = in.number();
  normalise(type, x, tokens, parts, read_norm(in), out);
}

void run_add_norm(Reader& in, Type type, int64_t tokens) {
  const Rows a = in.rows(type), b = in.rows(type);
  void* total = in.result();
  void* out = in.result();
  add_and_normalise(type, a, b, tokens, read_norm(in), total, out);
}

void run_add(Reader& in, Type type, int64_t tokens) {
  const Rows a = in.rows(type), b = in.rows(type);
  void* out = in.result();
  add(type, a, b, tokens, in.number(), out);
}

void run_gated_activation(Reader& in, Type type, int64_t tokens) {
  const Rows gate = in.rows(type), up = in.rows(type);
  void* out = in.result();
  const int64_t width = in.number();
  gated_activation(type, gate, up, tokens, width, in.number(), out);
}

void run_activation(Reader& in, Type type, int64_t tokens) {
  const Rows x = in.rows(type);
  void* out = in.result();
  const int64_t width = in.number();
  activation(type, x, tokens, width, in.number(), out);
}

void run_scale(Reader& in, Type type, int64_t tokens) {
  const Rows x = in.rows(type);
  void* out = in.result();
  const int64_t width = in.number(), divide = in.number();
  scale(type, x, tokens, width, static_cast<float>(in.real()), divide != 0, out);
}

void run_attention(Reader& in, Type type, int64_t tokens) {
  Attention a{};
  a.type = type;
  a.tokens = tokens;
  const Rows query = in.rows(type), key = in.rows(type), value = in.rows(type);
  a.query_head_stride = in.number(), a.key_head_stride = in.number(), a.value_head_stride = in.number();
  a.out = in.result();
  a.query_heads = in.number(), a.kv_heads = in.number(), a.key_size = in.number(), a.value_size = in.number();
  a.block_size = in.number();
  a.query = query.data, a.query_token_stride = query.stride;
  const bool writes = in.number() != 0;
  a.key = writes ? key.data : nullptr, a.key_token_stride = key.stride;
  a.value = writes ? value.data : nullptr, a.value_token_stride = value.stride;
  a.keys = in.pointer<void>(), a.values = in.pointer<void>();
  a.keys_block_stride = in.number(), a.keys_head_stride = in.number();
  a.values_block_stride = in.number(), a.values_head_stride = in.number();
  const Layout& layout = in.layout();
  a.tables = layout.tables, a.table_stride = layout.table_stride, a.sequence = layout.sequence;
  a.length = layout.length, a.slots = layout.slots;
  a.rotary_wide = in.number() != 0, a.rotary_interleaved = in.number() != 0;
  const Type angles = a.rotary_wide ? Type::float32 : type;
  const Rows cos = in.rows(angles), sin = in.rows(angles);
  a.rotary_size = in.number();
  if (a.rotary_size > 0) a.cos = cos.data, a.sin = sin.data, a.rotary_stride = cos.stride;
  a.sinks = in.pointer<const float>();
  a.window = in.number(), a.chunk = in.number();
  a.scale = static_cast<float>(in.real()), a.softcap = static_cast<float>(in.real());
  paged_attention(a);
}

}  // namespace

extern "C" {

// code: `length` numbers. places: of `num_own` slots; see Program.
void* gridwork_program_new(const int64_t* code, int64_t length, int64_t num_external, const int64_t* places,
                           int64_t num_own, int64_t own_bytes) {
  return new Program{{code, code + length}, num_external, {places, places + num_own}, own_bytes, {}};
}

void gridwork_program_delete(void* program) { delete static_cast<Program*>(program); }

// One call at a time.
void gridwork_program_run(void* program, const void* call_memory) {
  const Call& call = *static_cast<const Call*>(call_memory);
  if (call.tokens == 0) return;
  Reader in(*static_cast<Program*>(program), call);
  while (!in.done()) {
    const int64_t operation = in.number();
    const auto type = static_cast<Type>(in.number());
    const auto start = times != nullptr ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
    switch (operation) {
      case kLinear: run_linear(in, type, call.tokens); break;
      case kQuantizedLinear: run_quantized_linear(in, type, call.tokens); break;
      case kNorm: run_norm(in, type, call.tokens); break;
      case kAddNorm: run_add_norm(in, type, call.tokens); break;
      case kAdd: run_add(in, type, call.tokens); break;
      case kGatedActivation: run_gated_activation(in, type, call.tokens); break;
      case kGatedLinear: run_gated_linear(in, type, call.tokens); break;
      case kEmbedding: run_embedding(in, type, call.tokens); break;
      case kActivation: run_activation(in, type, call.tokens); break;
      case kScale: run_scale(in, type, call.tokens); break;
      default: run_attention(in, type, call.tokens); break;
    }
    if (times != nullptr) {
      times->seconds[operation] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      ++times->calls[operation];
    }
  }
}

// Starts to measure the operations of all programs, from 0 on.
void gridwork_program_measure() {
  delete times;
  times = new Times;
}

// By operation: seconds, and how often it was called, since the measurement was started; ends it.
void gridwork_program_measured(double* seconds, int64_t* calls) {
  if (times == nullptr) return;
  std::memcpy(seconds, times->seconds, sizeof times->seconds);
  std::memcpy(calls, times->calls, sizeof times->calls);
  delete times;
  times = nullptr;
}

}
