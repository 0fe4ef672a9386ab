// Operations of a forward pass, one after the other, in one call: without Python, PyTorch's dispatcher and its
// allocator between them.
//
// A program is a list of whole numbers, which `gridwork_server/graph/native.py` writes: sections, each after the number
// of its numbers, which is negative where attention makes tokens depend on each other. It names memory by slots: the
// first `num_external` are given with each call, the others are parts of memory of the program's own. An operand is
// (slot, offset, stride): the first token's values begin `offset` values behind the slot's start, and each other
// token's `stride` values later. A floating-point number stands as the bits of a double.
//
// A section that computes each token by itself, all between one attention and the next, is a stretch. Of many tokens it is
// computed block by block, each by one thread from its first operation to its last: threads do not wait for each other
// after every operation, and what they compute stays in their own caches.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/amx.h"
#include "common/kernels.h"
#include "common/scratch.h"
#include "common/thread_pool.h"

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
constexpr int64_t kTokenAlignment = 64;
int64_t rounded_up(int64_t tokens) { return (tokens + kTokenAlignment - 1) / kTokenAlignment * kTokenAlignment; }

// Tokens of a block of a stretch: as many rows as linear layers multiply with all their weights before the next ones, and
// so many at least. A matrix unit has computed fewer rows before the weights are there, which every block reads.
#if defined(GRIDWORK_AMX)
constexpr int64_t kMaxBlockTokens = 320, kMinBlockTokens = 192;
#else
constexpr int64_t kMaxBlockTokens = 96, kMinBlockTokens = 32;
#endif

// A call's tokens in blocks, each for one thread. Where each thread has several, there are twice as many of the last ones,
// half as long: cores are not equally fast at all times, and the slower one has less to finish then while the others wait.
class TokenBlocks {
 public:
  explicit TokenBlocks(int64_t tokens) : tokens_(tokens) {
    const int64_t threads = num_threads(), least = (tokens + kMaxBlockTokens - 1) / kMaxBlockTokens;
    const int64_t equal = (least + threads - 1) / threads * threads;
    if (tokens / equal < kMinBlockTokens) return;
    whole_ = equal, halves_ = 2 * equal;
    if (equal > threads && tokens / halves_ >= kMinBlockTokens) whole_ -= threads;
  }

  // 1: all tokens are left together.
  int64_t blocks() const { return halves_ - whole_; }

  // The first token of a block, or, of the one behind the last, how many there are.
  int64_t first(int64_t block) const { return (block + std::min(block, whole_)) * tokens_ / halves_; }

 private:
  int64_t tokens_, whole_ = 1, halves_ = 2;
};

struct Program {
  std::vector<int64_t> code;
  int64_t num_external;
  // Of our own slots, bytes for each token: `before` it among those that last from stretch to stretch, or `~before`
  // among those of one stretch alone.
  std::vector<int64_t> places;
  int64_t persistent_bytes, temporary_bytes;  // of all of them, for each token
  Scratch own;  // memory of the lasting ones, and of the others where a stretch is not cut
};

// Where the tokens lie that are computed: all of a call, or a block of them.
struct Memory {
  char* persistent;
  int64_t persistent_tokens;  // of the call, filled up
  char* temporary;
  int64_t temporary_tokens;  // of the block, filled up
  int64_t first;           // token
  int64_t tokens;
};

// A result: the first token of all, or of the block where there is memory for that alone.
struct Result {
  char* data;
  int64_t before;  // tokens that are not the block's

  void* of(int64_t bytes) const { return data + before * bytes; }
};

// Reads a program's numbers one by one.
class Reader {
 public:
  Reader(const Program& program, const Call& call, const int64_t* at, const int64_t* end, const Memory& memory)
      : at_(at), end_(end), program_(program), call_(call), memory_(memory) {}

  bool done() const { return at_ == end_; }
  int64_t tokens() const { return memory_.tokens; }
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
    const Result slot = result();
    const int64_t offset = number(), stride = number();
    return {slot.data + (offset + slot.before * stride) * static_cast<int64_t>(value_bytes(type)), stride};
  }
  // Results, and what the step gives, are contiguous.
  Result result() {
    const int64_t slot = number();
    if (slot < program_.num_external) return {static_cast<char*>(call_.external[slot]), memory_.first};
    const int64_t place = program_.places[static_cast<size_t>(slot - program_.num_external)];
    if (place < 0) return {memory_.temporary + ~place * memory_.temporary_tokens, 0};
    return {memory_.persistent + place * memory_.persistent_tokens, memory_.first};
  }
  const Layout& layout() { return call_.layouts[number()]; }

 private:
  const int64_t* at_;
  const int64_t* end_;
  const Program& program_;
  const Call& call_;
  const Memory& memory_;
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

void run_embedding(Reader& in, Type type) {
  const auto* ids = static_cast<const int64_t*>(in.result().of(sizeof(int64_t)));
  const auto* table = in.pointer<const char>();
  const int64_t count = in.number(), bytes = in.number() * static_cast<int64_t>(value_bytes(type));
  embedding(ids, in.tokens(), table, count, bytes, static_cast<char*>(in.result().of(bytes)));
}

PackedWeights read_weights(Reader& in) {
  const auto type = static_cast<Type>(in.number());
  const void* values = in.pointer<const void>();
  const int64_t num_panels = in.number(), groups = in.number(), features = in.number();
  return {type, values, num_panels, groups, features, in.pointer<const float>()};
}

int64_t bytes_of(int64_t values, Type type, bool float32 = false) {
  return values * static_cast<int64_t>(value_bytes(float32 ? Type::float32 : type));
}

void run_linear(Reader& in, Type type) {
  const Rows x = in.rows(type);
  const Result out = in.result();
  const int64_t parts = in.number(), K = in.number();
  const bool float32_out = in.number() != 0;
  const PackedWeights weights = read_weights(in);
  linear(type, x.data, in.tokens() * parts, K, weights, out.of(bytes_of(parts * weights.features, type, float32_out)),
         float32_out);
}

void run_gated_linear(Reader& in, Type type) {
  const Rows x = in.rows(type);
  const Result halves = in.result(), out = in.result();
  const int64_t K = in.number(), kind = in.number();
  const PackedWeights weights = read_weights(in);
  gated_linear(type, x.data, in.tokens(), K, weights, kind, halves.of(bytes_of(weights.features, type)),
               out.of(bytes_of(weights.features / 2, type)));
}

void run_quantized_linear(Reader& in, Type type) {
  const Rows x = in.rows(type);
  const Result out = in.result();
  const int64_t parts = in.number(), K = in.number();
  const bool float32_out = in.number() != 0, four_bits = in.number() != 0;
  const void* values = in.pointer<const void>();
  const void* scales = in.pointer<const void>();
  const int64_t num_panels = in.number(), features = in.number();
  const QuantizedWeights weights{four_bits, values, scales, num_panels, features, in.pointer<const float>()};
  quantized_linear(type, x.data, in.tokens() * parts, K, weights,
                   out.of(bytes_of(parts * features, type, float32_out)), float32_out);
}

Norm read_norm(Reader& in) {
  const auto kind = static_cast<NormKind>(in.number());
  const void* weight = in.pointer<const void>();
  const void* bias = in.pointer<const void>();
  const int64_t width = in.number();
  return {kind, weight, bias, width, static_cast<float>(in.real())};
}

void run_norm(Reader& in, Type type) {
  const Rows x = in.rows(type);
  const Result out = in.result();
  const int64_t parts = in.number();
  const Norm norm = read_norm(in);
  normalise(type, x, in.tokens(), parts, norm, out.of(bytes_of(parts * norm.width, type)));
}

void run_add_norm(Reader& in, Type type) {
  const Rows a = in.rows(type), b = in.rows(type);
  const Result total = in.result(), out = in.result();
  const Norm norm = read_norm(in);
  const int64_t bytes = bytes_of(norm.width, type);
  add_and_normalise(type, a, b, in.tokens(), norm, total.of(bytes), out.of(bytes));
}

void run_add(Reader& in, Type type) {
  const Rows a = in.rows(type), b = in.rows(type);
  const Result out = in.result();
  const int64_t width = in.number();
  add(type, a, b, in.tokens(), width, out.of(bytes_of(width, type)));
}

void run_gated_activation(Reader& in, Type type) {
  const Rows gate = in.rows(type), up = in.rows(type);
  const Result out = in.result();
  const int64_t width = in.number();
  gated_activation(type, gate, up, in.tokens(), width, in.number(), out.of(bytes_of(width, type)));
}

void run_activation(Reader& in, Type type) {
  const Rows x = in.rows(type);
  const Result out = in.result();
  const int64_t width = in.number();
  activation(type, x, in.tokens(), width, in.number(), out.of(bytes_of(width, type)));
}

void run_scale(Reader& in, Type type) {
  const Rows x = in.rows(type);
  const Result out = in.result();
  const int64_t width = in.number(), divide = in.number();
  scale(type, x, in.tokens(), width, static_cast<float>(in.real()), divide != 0, out.of(bytes_of(width, type)));
}

void run_attention(Reader& in, Type type) {
  Attention a{};
  a.type = type;
  a.tokens = in.tokens();
  const Rows query = in.rows(type), key = in.rows(type), value = in.rows(type);
  a.query_head_stride = in.number(), a.key_head_stride = in.number(), a.value_head_stride = in.number();
  a.out = in.result().data;
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

// Operations until the reader's end. spent: what each took, or null.
void run_operations(Reader& in, Times* spent) {
  while (!in.done()) {
    const int64_t operation = in.number();
    const auto type = static_cast<Type>(in.number());
    const auto start = spent != nullptr ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
    switch (operation) {
      case kLinear: run_linear(in, type); break;
      case kQuantizedLinear: run_quantized_linear(in, type); break;
      case kNorm: run_norm(in, type); break;
      case kAddNorm: run_add_norm(in, type); break;
      case kAdd: run_add(in, type); break;
      case kGatedActivation: run_gated_activation(in, type); break;
      case kGatedLinear: run_gated_linear(in, type); break;
      case kEmbedding: run_embedding(in, type); break;
      case kActivation: run_activation(in, type); break;
      case kScale: run_scale(in, type); break;
      default: run_attention(in, type); break;
    }
    if (spent != nullptr) {
      spent->seconds[operation] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      ++spent->calls[operation];
    }
  }
}

// The operations in [begin, end), which compute each token by itself, block by block.
//   spent: as for run_operations; what the blocks take at the same time is divided by their threads.
void run_stretch(const Program& program, const Call& call, const int64_t* begin, const int64_t* end,
                 const Memory& memory, const TokenBlocks& cut, Times* spent) {
  std::vector<Times> of_blocks(spent != nullptr ? static_cast<size_t>(cut.blocks()) : 0);
  parallel_for(cut.blocks(), 1, [&](int64_t from, int64_t to) {
    thread_local Scratch scratch;
    for (int64_t block = from; block < to; ++block) {
      Memory own = memory;
      own.first = cut.first(block), own.tokens = cut.first(block + 1) - own.first;
      own.temporary_tokens = rounded_up(own.tokens);
      const auto bytes = static_cast<size_t>(program.temporary_bytes * own.temporary_tokens);
      own.temporary = reinterpret_cast<char*>(scratch.floats(bytes / sizeof(float)));
      Reader in(program, call, begin, end, own);
      run_operations(in, spent != nullptr ? &of_blocks[static_cast<size_t>(block)] : nullptr);
    }
  });
  if (spent == nullptr) return;
  for (int64_t operation = 0; operation < kCount; ++operation) {
    spent->calls[operation] += of_blocks[0].calls[operation];
    for (const Times& block : of_blocks) {
      spent->seconds[operation] += block.seconds[operation] / static_cast<double>(std::min(cut.blocks(), num_threads()));
    }
  }
}

}  // namespace

extern "C" {

// code: `length` numbers. places: of `num_own` slots, as the bytes; see Program.
void* gridwork_program_new(const int64_t* code, int64_t length, int64_t num_external, const int64_t* places,
                           int64_t num_own, int64_t persistent_bytes, int64_t temporary_bytes) {
  return new Program{{code, code + length}, num_external, {places, places + num_own}, persistent_bytes, temporary_bytes, {}};
}

void gridwork_program_delete(void* program) { delete static_cast<Program*>(program); }

// One call at a time.
void gridwork_program_run(void* program_memory, const void* call_memory) {
  const Call& call = *static_cast<const Call*>(call_memory);
  if (call.tokens == 0) return;
  Program& program = *static_cast<Program*>(program_memory);
  const TokenBlocks cut(call.tokens);
  const int64_t tokens = rounded_up(call.tokens);
  const int64_t persistent = program.persistent_bytes * tokens, temporary = cut.blocks() > 1 ? 0 : program.temporary_bytes * tokens;
  char* const own = reinterpret_cast<char*>(program.own.floats(static_cast<size_t>(persistent + temporary) / sizeof(float)));
  const Memory memory{own, tokens, own + persistent, tokens, 0, call.tokens};
  const int64_t* const end = program.code.data() + program.code.size();
  for (const int64_t* at = program.code.data(); at != end;) {
    const int64_t length = *at++;
    const int64_t* const next = at + std::abs(length);
    if (length > 0 && cut.blocks() > 1) {
      run_stretch(program, call, at, next, memory, cut, times);
    } else {
      Reader in(program, call, at, next, memory);
      run_operations(in, times);
    }
    at = next;
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
