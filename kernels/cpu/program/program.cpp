// Runs a recorded program: the operations of a forward pass in one call, without Python, PyTorch's dispatcher or its
// allocator between them.
//
// A program is a list of whole numbers, which `gridwork_kernels/program.py` writes. It consists of sections. Each
// section begins with its length, the count of the numbers that follow; the length is negative where attention makes
// tokens depend on each other. Each operation is its number, the number of its data type, and its operands, in the
// order of `program_table.def`. An operand names memory by a slot: the first `num_external` slots are given with each
// call, the others are parts of the program's own memory.
//
// Between one attention and the next, operations compute each token independently. A call with many tokens runs such a
// section block by block: one thread takes a block of tokens through all operations of the section. Threads then do not
// wait for each other after every operation, and read their own results from their own caches.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/amx.h"
#include "common/kernels.h"
#include "common/scratch.h"
#include "common/thread_pool.h"
#include "program_table.def"

namespace {

using namespace gridwork;

#define GRIDWORK_ENUM(name, OPERANDS) name##_operation,
enum Operation : int64_t { GRIDWORK_OPERATIONS(GRIDWORK_ENUM) kNumOperations };
#undef GRIDWORK_ENUM

// Kinds of operands. `rows` takes three numbers of a program, all others one.
enum class OperandKind { rows, slot, number, flag, real, address };

#define GRIDWORK_KIND(kind, name) OperandKind::kind,
#define GRIDWORK_KINDS(name, OPERANDS) {OPERANDS(GRIDWORK_KIND)},
const std::vector<OperandKind> kOperandKinds[] = {GRIDWORK_OPERATIONS(GRIDWORK_KINDS)};
#undef GRIDWORK_KINDS
#undef GRIDWORK_KIND

#define GRIDWORK_COUNT(name) +1
constexpr int64_t kNumTypes = 0 GRIDWORK_TYPES(GRIDWORK_COUNT);
#undef GRIDWORK_COUNT

// The table as text; `program_table.py` makes the same of the file.
#define GRIDWORK_WORD(name) #name " "
#define GRIDWORK_WORDS(kind, name) #kind " " #name " "
#define GRIDWORK_OPERATION(name, OPERANDS) #name " " OPERANDS(GRIDWORK_WORDS)
constexpr const char* kTable = GRIDWORK_TYPES(GRIDWORK_WORD) GRIDWORK_ACTIVATIONS(GRIDWORK_WORD)
    GRIDWORK_NORMS(GRIDWORK_WORD) GRIDWORK_OPERATIONS(GRIDWORK_OPERATION) GRIDWORK_LAYOUT(GRIDWORK_WORDS)
        GRIDWORK_STATES(GRIDWORK_WORDS);
#undef GRIDWORK_OPERATION
#undef GRIDWORK_WORDS
#undef GRIDWORK_WORD

// 64-bit FNV-1a (Fowler, Noll and Vo).
constexpr uint64_t hash(const char* text) {
  uint64_t value = 0xcbf29ce484222325;
  for (; *text != 0; ++text) value = (value ^ static_cast<unsigned char>(*text)) * 0x100000001b3;
  return value;
}

// Where a step's tokens lie in the cache; see `PagedLayout`.
struct Layout {
  const int32_t* tables;
  int64_t table_stride;
  const int32_t* sequence;
  const int32_t* length;
  const int64_t* slots;
};

#define GRIDWORK_COUNT(kind, name) +1
static_assert(sizeof(Layout) == sizeof(int64_t) * (0 GRIDWORK_LAYOUT(GRIDWORK_COUNT)));
static_assert(sizeof(States) == sizeof(int64_t) * (0 GRIDWORK_STATES(GRIDWORK_COUNT)));
#undef GRIDWORK_COUNT

// Arguments of one call: the layouts of layers without and with a window, the states, and the external slots.
struct Call {
  int64_t tokens;
  Layout layouts[2];
  States states;
  void* external[];
};

struct Times {
  double seconds[kNumOperations] = {};
  int64_t calls[kNumOperations] = {};
};

// Times of all programs' operations while they are measured, else null.
Times* times = nullptr;

size_t value_bytes(Type type) { return type == Type::float32 ? 4 : 2; }

// Number of tokens whose values fill whole cache lines for every size of value.
constexpr int64_t kTokenAlignment = 64;
int64_t rounded_up(int64_t tokens) { return (tokens + kTokenAlignment - 1) / kTokenAlignment * kTokenAlignment; }

// Limits of a block's tokens. The maximum is the number of rows that linear layers multiply by all their weights before
// they begin the next rows. AMX needs more: with fewer rows it waits for the weights, which every block reads.
// Without AMX, blocks of 48 to 192 tokens were equally fast (Zen 5).
#if defined(GRIDWORK_AMX)
constexpr int64_t kMaxBlockTokens = 320, kMinBlockTokens = 192;
#else
constexpr int64_t kMaxBlockTokens = 96, kMinBlockTokens = 32;
#endif

// Cuts a call's tokens into blocks, each for one thread. Where each thread has several blocks, the last block of each
// is cut in half: cores are not equally fast at all times, and a slower core then keeps the others waiting for less.
// Shorter last blocks, or short blocks throughout, were no faster.
class TokenBlocks {
 public:
  explicit TokenBlocks(int64_t tokens) : tokens_(tokens) {
    const int64_t threads = num_threads(), least = (tokens + kMaxBlockTokens - 1) / kMaxBlockTokens;
    const int64_t equal = (least + threads - 1) / threads * threads;
    if (tokens / equal < kMinBlockTokens) return;
    whole_ = equal, halves_ = 2 * equal;
    if (equal > threads && tokens / halves_ >= kMinBlockTokens) whole_ -= threads;
  }

  // 1 where the tokens stay together.
  int64_t count() const { return halves_ - whole_; }

  // The first token of a block; for the block after the last one, the number of tokens.
  int64_t first(int64_t block) const { return (block + std::min(block, whole_)) * tokens_ / halves_; }

 private:
  int64_t tokens_, whole_ = 1, halves_ = 2;
};

struct Program {
  std::vector<int64_t> code;
  int64_t num_external;
  // Offset of each own slot, in bytes for each token. An offset of 0 or more lies in persistent memory, which sections
  // share; `~offset` lies in temporary memory, which one section uses.
  std::vector<int64_t> places;
  int64_t persistent_bytes, temporary_bytes;  // of all slots, for each token
  Scratch own;  // persistent memory, and temporary memory where sections are not run in blocks
};

// Memory of the tokens to compute: all of a call, or one block of them.
struct Memory {
  char* persistent;
  int64_t persistent_tokens;  // of the call, rounded up
  char* temporary;
  int64_t temporary_tokens;  // of the block, rounded up
  int64_t first;             // token
  int64_t tokens;
};

// A contiguous tensor, from the first token of the call, or of the block where only the block has memory.
struct Tensor {
  char* data;
  int64_t before;  // tokens before the block

  void* at(int64_t bytes) const { return data + before * bytes; }
};

int64_t bytes_of(int64_t values, Type type, bool float32 = false) {
  return values * static_cast<int64_t>(value_bytes(float32 ? Type::float32 : type));
}

// An operand of kind `rows`: the first token's values begin `offset` values after the slot's start, and the next
// token's values `stride` values later.
struct Operand {
  Tensor slot;
  int64_t offset, stride;

  Rows of(Type type) const { return {slot.data + bytes_of(offset + slot.before * stride, type), stride}; }
};

// Reads a program's numbers one by one. Its methods have the names of operand kinds.
class Reader {
 public:
  Reader(const Program& program, const Call& call, const int64_t* at, const int64_t* end, const Memory& memory)
      : at_(at), end_(end), program_(program), call_(call), memory_(memory) {}

  bool done() const { return at_ == end_; }
  int64_t tokens() const { return memory_.tokens; }
  const Layout& layout(int64_t number) const { return call_.layouts[number]; }
  const States& states() const { return call_.states; }

  int64_t number() { return *at_++; }
  bool flag() { return number() != 0; }
  double real() {
    double value;
    std::memcpy(&value, at_++, sizeof value);
    return value;
  }
  void* address() { return reinterpret_cast<void*>(*at_++); }
  Operand rows() {
    const Tensor of_slot = slot();
    const int64_t offset = number(), stride = number();
    return {of_slot, offset, stride};
  }
  Tensor slot() {
    const int64_t slot = number();
    if (slot < program_.num_external) return {static_cast<char*>(call_.external[slot]), memory_.first};
    const int64_t place = program_.places[static_cast<size_t>(slot - program_.num_external)];
    if (place < 0) return {memory_.temporary + ~place * memory_.temporary_tokens, 0};
    return {memory_.persistent + place * memory_.persistent_tokens, memory_.first};
  }

 private:
  const int64_t* at_;
  const int64_t* end_;
  const Program& program_;
  const Call& call_;
  const Memory& memory_;
};

// Copies rows of a table, of `bytes` each. An id that the table does not have gives NaN, in every type: then that id's
// sequence fails and no other one.
void copy_rows(const int64_t* ids, int64_t tokens, const char* table, int64_t count, int64_t bytes, char* out) {
  constexpr int64_t kChunkBytes = 1 << 15;
  parallel_for(tokens, std::max<int64_t>(1, kChunkBytes / bytes), [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
      char* to = out + token * bytes;
      const bool exists = ids[token] >= 0 && ids[token] < count;
      if (exists) std::memcpy(to, table + ids[token] * bytes, static_cast<size_t>(bytes));
      else std::memset(to, 0xff, static_cast<size_t>(bytes));
    }
  });
}

// Reads an operation's operands into variables with the names of the table, in its order.
#define GRIDWORK_READ(kind, name) [[maybe_unused]] const auto name = in.kind();

#define GRIDWORK_READ_WEIGHTS                                                                        \
  const PackedWeights packed { static_cast<Type>(weights_type), weights, panels, groups, features, \
                               static_cast<const float*>(bias) }

void run_linear(Reader& in, Type type) {
  GRIDWORK_LINEAR(GRIDWORK_READ)
  GRIDWORK_READ_WEIGHTS;
  linear(type, x.of(type).data, in.tokens() * parts, in_features, packed,
         out.at(bytes_of(parts * features, type, float32_out)), float32_out);
}

void run_gated_linear(Reader& in, Type type) {
  GRIDWORK_GATED_LINEAR(GRIDWORK_READ)
  GRIDWORK_READ_WEIGHTS;
  gated_linear(type, x.of(type).data, in.tokens(), in_features, packed, static_cast<Activation>(activation_kind),
               halves.at(bytes_of(features, type)), out.at(bytes_of(features / 2, type)));
}

void run_quantized_linear(Reader& in, Type type) {
  GRIDWORK_QUANTIZED_LINEAR(GRIDWORK_READ)
  const QuantizedWeights quantized{four_bits, weights, scales, panels, features, static_cast<const float*>(bias)};
  quantized_linear(type, x.of(type).data, in.tokens() * parts, in_features, quantized,
                   out.at(bytes_of(parts * features, type, float32_out)), float32_out);
}

void run_norm(Reader& in, Type type) {
  GRIDWORK_NORM(GRIDWORK_READ)
  const Norm norm{static_cast<NormKind>(norm_kind), weight, bias, width, static_cast<float>(eps)};
  normalise(type, x.of(type), in.tokens(), parts, norm, out.at(bytes_of(parts * width, type)));
}

void run_add_norm(Reader& in, Type type) {
  GRIDWORK_ADD_NORM(GRIDWORK_READ)
  const Norm norm{static_cast<NormKind>(norm_kind), weight, bias, width, static_cast<float>(eps)};
  const int64_t bytes = bytes_of(width, type);
  add_and_normalise(type, a.of(type), b.of(type), in.tokens(), norm, total.at(bytes), out.at(bytes));
}

void run_add(Reader& in, Type type) {
  GRIDWORK_ADD(GRIDWORK_READ)
  add(type, a.of(type), b.of(type), in.tokens(), width, out.at(bytes_of(width, type)));
}

void run_gated_activation(Reader& in, Type type) {
  GRIDWORK_GATED_ACTIVATION(GRIDWORK_READ)
  gated_activation(type, gate.of(type), up.of(type), in.tokens(), width, static_cast<Activation>(activation_kind),
                   out.at(bytes_of(width, type)));
}

void run_activation(Reader& in, Type type) {
  GRIDWORK_ACTIVATION(GRIDWORK_READ)
  activation(type, x.of(type), in.tokens(), width, static_cast<Activation>(activation_kind),
             out.at(bytes_of(width, type)));
}

void run_scale(Reader& in, Type type) {
  GRIDWORK_SCALE(GRIDWORK_READ)
  scale(type, x.of(type), in.tokens(), width, static_cast<float>(factor), divide, out.at(bytes_of(width, type)));
}

void run_embedding(Reader& in, Type type) {
  GRIDWORK_EMBEDDING(GRIDWORK_READ)
  const int64_t bytes = bytes_of(width, type);
  copy_rows(static_cast<const int64_t*>(ids.at(sizeof(int64_t))), in.tokens(), static_cast<const char*>(table),
            table_rows, bytes, static_cast<char*>(out.at(bytes)));
}

void run_paged_attention(Reader& in, Type type) {
  GRIDWORK_PAGED_ATTENTION(GRIDWORK_READ)
  const Rows query_rows = query.of(type), key_rows = key.of(type), value_rows = value.of(type);
  const Layout& where = in.layout(layout);
  const Type angles = rotary_float32 ? Type::float32 : type;
  const Rows cosines = cos.of(angles), sines = sin.of(angles);
  paged_attention({
      .type = type,
      .query = query_rows.data,
      .query_token_stride = query_rows.stride,
      .query_head_stride = query_head_stride,
      .key = writes_cache ? key_rows.data : nullptr,
      .key_token_stride = key_rows.stride,
      .key_head_stride = key_head_stride,
      .value = writes_cache ? value_rows.data : nullptr,
      .value_token_stride = value_rows.stride,
      .value_head_stride = value_head_stride,
      .keys = keys,
      .values = values,
      .keys_block_stride = keys_block_stride,
      .keys_head_stride = keys_head_stride,
      .values_block_stride = values_block_stride,
      .values_head_stride = values_head_stride,
      .out = out.data,
      .tables = where.tables,
      .table_stride = where.table_stride,
      .sequence = where.sequence,
      .length = where.length,
      .slots = where.slots,
      .cos = rotary_size > 0 ? cosines.data : nullptr,
      .sin = rotary_size > 0 ? sines.data : nullptr,
      .rotary_stride = rotary_size > 0 ? cosines.stride : 0,
      .rotary_size = rotary_size,
      .rotary_float32 = rotary_float32,
      .rotary_interleaved = rotary_interleaved,
      .sinks = static_cast<const float*>(sinks),
      .slopes = nullptr,
      .tokens = in.tokens(),
      .query_heads = query_heads,
      .kv_heads = kv_heads,
      .key_size = key_size,
      .value_size = value_size,
      .block_size = block_size,
      .window = window,
      .chunk = chunk,
      .scale = static_cast<float>(scale),
      .softcap = static_cast<float>(softcap),
  });
}

void run_multiply(Reader& in, Type type) {
  GRIDWORK_MULTIPLY(GRIDWORK_READ)
  multiply(type, a.of(type), b.of(type), in.tokens(), width, out.at(bytes_of(width, type)));
}

void run_convert(Reader& in, Type type) {
  GRIDWORK_CONVERT(GRIDWORK_READ)
  convert(type, x.of(widens ? type : Type::float32), in.tokens(), width, widens, out.at(bytes_of(width, type, widens)));
}

void run_gated_norm(Reader& in, Type type) {
  GRIDWORK_GATED_NORM(GRIDWORK_READ)
  gated_norm({
      .type = type,
      .float32_in = float32_in,
      .float32_out = float32_out,
      .gate_first = gate_first,
      .activation = static_cast<Activation>(activation_kind),
      .x = x.of(float32_in ? Type::float32 : type),
      .gate = gate.of(type),
      .weight = weight,
      .count = in.tokens(),
      .parts = parts,
      .groups = groups,
      .width = width,
      .eps = static_cast<float>(eps),
      .out = out.at(bytes_of(parts * groups * width, type, float32_out)),
  });
}

void run_softplus_scaled(Reader& in, Type type) {
  GRIDWORK_SOFTPLUS_SCALED(GRIDWORK_READ)
  softplus_scaled(type, x.of(type), in.tokens(), width, static_cast<const float*>(bias),
                  static_cast<const float*>(factor), static_cast<float*>(out.at(bytes_of(width, Type::float32))));
}

void run_causal_conv(Reader& in, Type type) {
  GRIDWORK_CAUSAL_CONV(GRIDWORK_READ)
  causal_conv({type, x.of(type), weight, bias, with_silu, channels, size, in.states(), pool, out.data});
}

void run_gated_delta(Reader& in, Type type) {
  GRIDWORK_GATED_DELTA(GRIDWORK_READ)
  gated_delta({
      .type = type,
      .query = query.of(type),
      .key = key.of(type),
      .value = value.of(type),
      .decay = decay.of(Type::float32),
      .decay_of_dimensions = decay_of_dimensions,
      .beta = beta.of(Type::float32),
      .normalise = normalises,
      .tokens = in.tokens(),
      .key_heads = key_heads,
      .value_heads = value_heads,
      .key_size = key_size,
      .value_size = value_size,
      .states = in.states(),
      .pool = static_cast<float*>(pool),
      .out = out.data,
  });
}

void run_scan_heads(Reader& in, Type type) {
  GRIDWORK_SCAN_HEADS(GRIDWORK_READ)
  scan_heads({
      .type = type,
      .x = x.of(type),
      .step = step.of(type),
      .b = b.of(type),
      .c = c.of(type),
      .a = static_cast<const float*>(a),
      .d = static_cast<const float*>(d),
      .bias = static_cast<const float*>(bias),
      .softplus = softplus,
      .least = static_cast<float>(least),
      .most = static_cast<float>(most),
      .tokens = in.tokens(),
      .heads = heads,
      .size = head_size,
      .groups = groups,
      .state_size = state_size,
      .states = in.states(),
      .pool = static_cast<float*>(pool),
      .out = reinterpret_cast<float*>(out.data),
  });
}

void run_scan_channels(Reader& in, Type type) {
  GRIDWORK_SCAN_CHANNELS(GRIDWORK_READ)
  scan_channels({
      .type = type,
      .x = x.of(type),
      .step = step.of(type),
      .b = b.of(type),
      .c = c.of(type),
      .a = static_cast<const float*>(a),
      .d = static_cast<const float*>(d),
      .bias = static_cast<const float*>(bias),
      .softplus = softplus,
      .channels = channels,
      .state_size = state_size,
      .states = in.states(),
      .pool = static_cast<float*>(pool),
      .out = reinterpret_cast<float*>(out.data),
  });
}

#undef GRIDWORK_READ_WEIGHTS
#undef GRIDWORK_READ

// The first number of [begin, end) that is not part of a valid section, or null: every operation must have a known
// number, a known type and all its operands, and every slot must exist. The values of other operands are not checked.
const int64_t* first_error(const Program& program, const int64_t* begin, const int64_t* end) {
  const int64_t num_slots = program.num_external + static_cast<int64_t>(program.places.size());
  for (const int64_t* at = begin; at < end;) {
    const int64_t operation = *at;
    if (operation < 0 || operation >= kNumOperations) return at;
    if (end - at < 2 || at[1] < 0 || at[1] >= kNumTypes) return at;
    at += 2;
    for (const OperandKind kind : kOperandKinds[operation]) {
      const int64_t numbers = kind == OperandKind::rows ? 3 : 1;
      if (end - at < numbers) return at;
      const bool has_slot = kind == OperandKind::rows || kind == OperandKind::slot;
      if (has_slot && (*at < 0 || *at >= num_slots)) return at;
      at += numbers;
    }
  }
  return nullptr;
}

// The first number of a program that is not valid, or null.
const int64_t* first_error(const Program& program) {
  const int64_t *at = program.code.data(), *const end = at + program.code.size();
  while (at < end) {
    const int64_t left = end - at - 1;
    if (*at > left || *at < -left) return at;
    const int64_t length = std::abs(*at);
    if (const int64_t* error = first_error(program, at + 1, at + 1 + length)) return error;
    at += 1 + length;
  }
  return nullptr;
}

// Runs operations until the reader's end. spent: adds the time that each takes, or null.
void run_operations(Reader& in, Times* spent) {
  while (!in.done()) {
    const int64_t operation = in.number();
    const auto type = static_cast<Type>(in.number());
    const auto start = spent != nullptr ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
#define GRIDWORK_RUN(name, OPERANDS) \
  case name##_operation: run_##name(in, type); break;
    switch (operation) { GRIDWORK_OPERATIONS(GRIDWORK_RUN) }
#undef GRIDWORK_RUN
    if (spent != nullptr) {
      spent->seconds[operation] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      ++spent->calls[operation];
    }
  }
}

// Runs the operations of [begin, end), which compute each token independently, block by block.
//   spent: as for run_operations. The time of blocks that run at once is divided by the number of threads.
void run_in_blocks(const Program& program, const Call& call, const int64_t* begin, const int64_t* end,
                   const Memory& memory, const TokenBlocks& blocks, Times* spent) {
  std::vector<Times> of_blocks(spent != nullptr ? static_cast<size_t>(blocks.count()) : 0);
  parallel_for(blocks.count(), 1, [&](int64_t from, int64_t to) {
    thread_local Scratch scratch;
    for (int64_t block = from; block < to; ++block) {
      Memory own = memory;
      own.first = blocks.first(block), own.tokens = blocks.first(block + 1) - own.first;
      own.temporary_tokens = rounded_up(own.tokens);
      const auto bytes = static_cast<size_t>(program.temporary_bytes * own.temporary_tokens);
      own.temporary = reinterpret_cast<char*>(scratch.floats(bytes / sizeof(float)));
      Reader in(program, call, begin, end, own);
      run_operations(in, spent != nullptr ? &of_blocks[static_cast<size_t>(block)] : nullptr);
    }
  });
  if (spent == nullptr) return;
  for (int64_t operation = 0; operation < kNumOperations; ++operation) {
    spent->calls[operation] += of_blocks[0].calls[operation];
    const auto at_once = static_cast<double>(std::min(blocks.count(), num_threads()));
    for (const Times& block : of_blocks) spent->seconds[operation] += block.seconds[operation] / at_once;
  }
}

}  // namespace

extern "C" {

// Hash of the table that this library was built from; `cpu_library.py` compares it.
uint64_t gridwork_program_table_hash() {
  constexpr uint64_t kHash = hash(kTable);
  return kHash;
}

// Reads a program of `length` numbers. places: of `num_own` slots; for them and the numbers of bytes see Program.
// Returns null where the program is not valid, and sets `error` to the index of the number where that shows.
void* gridwork_program_new(const int64_t* code, int64_t length, int64_t num_external, const int64_t* places,
                           int64_t num_own, int64_t persistent_bytes, int64_t temporary_bytes, int64_t* error) {
  auto* program = new Program{
      {code, code + length}, num_external, {places, places + num_own}, persistent_bytes, temporary_bytes, {}};
  const int64_t* wrong = first_error(*program);
  if (wrong == nullptr) return program;
  *error = wrong - program->code.data();
  delete program;
  return nullptr;
}

void gridwork_program_delete(void* program) { delete static_cast<Program*>(program); }

// Runs a program; at most one call at a time for each program.
void gridwork_program_run(void* program_memory, const void* call_memory) {
  const Call& call = *static_cast<const Call*>(call_memory);
  if (call.tokens == 0) return;
  Program& program = *static_cast<Program*>(program_memory);
  const TokenBlocks blocks(call.tokens);
  const int64_t tokens = rounded_up(call.tokens);
  const int64_t persistent = program.persistent_bytes * tokens;
  const int64_t temporary = blocks.count() > 1 ? 0 : program.temporary_bytes * tokens;
  const auto floats = static_cast<size_t>(persistent + temporary) / sizeof(float);
  char* const own = reinterpret_cast<char*>(program.own.floats(floats));
  const Memory memory{own, tokens, own + persistent, tokens, 0, call.tokens};
  const int64_t* const end = program.code.data() + program.code.size();
  for (const int64_t* at = program.code.data(); at != end;) {
    const int64_t length = *at++;
    const int64_t* const next = at + std::abs(length);
    if (length > 0 && blocks.count() > 1) {
      run_in_blocks(program, call, at, next, memory, blocks, times);
    } else {
      Reader in(program, call, at, next, memory);
      run_operations(in, times);
    }
    at = next;
  }
}

// Starts to measure the operations of all programs, from zero.
void gridwork_program_measure() {
  delete times;
  times = new Times;
}

// Ends the measurement. seconds, calls: by operation.
void gridwork_program_measured(double* seconds, int64_t* calls) {
  if (times == nullptr) return;
  std::memcpy(seconds, times->seconds, sizeof times->seconds);
  std::memcpy(calls, times->calls, sizeof times->calls);
  delete times;
  times = nullptr;
}

}
