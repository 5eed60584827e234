#include <cstdio>
#include <cstdlib>
#include <vector>

#include "state.h"

namespace cuda_emulator {
namespace {

constexpr size_t kRedZone = 128;  // minimum bytes around every array
constexpr unsigned kMostArrays = 64;
constexpr size_t kCapacity = kMostShared + 2 * kRedZone * (kMostArrays + 2);
static_assert(kCapacity % kRedZone == 0);
constexpr unsigned char kFill = 0xff;  // a NaN in every float format, -1 in every integer

struct Array {
  const void* tag;
  const char* name;
  char* begin;
  size_t bytes;
};

struct Arena {
  char* begin = nullptr;
  size_t dirty = 0;
};
Arena arenas[kMostSets];
char* arena = nullptr;
size_t used = 0;           // of the arena, red zones included
size_t counted_bytes = 0;  // as the GPU counts them
Array arrays[kMostArrays];
unsigned num_arrays = 0;
char* dynamic_begin = nullptr;
size_t dynamic_bytes = 0, dynamic_allowed = 0;
bool dynamic_was_allowed = false;

struct Allowed {
  const void* kernel;
  size_t bytes;
};
std::vector<Allowed> allowed;

// Places an array after the red zone, at an address that is a multiple of `alignment` but of no higher power of two.
char* place(size_t bytes, size_t alignment) {
  const size_t shift = alignment < kRedZone ? alignment : 0;
  char* begin = arena + used + shift;
  used += (shift + bytes + kRedZone - 1) / kRedZone * kRedZone + kRedZone;
  if (used > kCapacity) return nullptr;
  unpoison(begin, bytes);
  return begin;
}

// Not memset, which ThreadSanitizer intercepts.
void fill(char* begin, size_t bytes) {
  volatile uint64_t* words = reinterpret_cast<uint64_t*>(begin);
  for (size_t i = 0; i < bytes / sizeof(uint64_t); ++i) words[i] = ~uint64_t{0};
}

void check_total() {
  if (counted_bytes - dynamic_bytes > kSharedByDefault)
    fail("static shared memory of %zu bytes is more than %zu", counted_bytes - dynamic_bytes, kSharedByDefault);
  if (counted_bytes > shared_optin())
    fail("shared memory of %zu bytes per block is more than %zu", counted_bytes, shared_optin());
  if (counted_bytes > kSharedByDefault && !dynamic_was_allowed)
    fail("shared memory of %zu bytes is more than %zu and cudaFuncSetAttribute was not called", counted_bytes,
         kSharedByDefault);
}

}  // namespace

void* shared_array(const void* tag, const char* name, size_t bytes, size_t alignment) {
  for (unsigned i = 0; i < num_arrays; ++i)
    if (arrays[i].tag == tag) return arrays[i].begin;
  if (num_arrays == kMostArrays) fail("more than %u shared arrays", kMostArrays);
  counted_bytes = (counted_bytes + alignment - 1) / alignment * alignment + bytes;
  check_total();
  char* begin = place(bytes, alignment);
  if (!begin) fail("no room for shared array %s of %zu bytes", name, bytes);
  arrays[num_arrays++] = {tag, name, begin, bytes};
  return begin;
}

void* dynamic_shared_memory() { return dynamic_begin; }

bool is_shared(const void* begin, size_t bytes) {
  const char* p = static_cast<const char*>(begin);
  return p >= arena && p + bytes <= arena + kCapacity;
}

cudaError_t allow_dynamic_shared(const void* kernel, int bytes) {
  count_call("cudaFuncSetAttribute");
  if (bytes < 0 || static_cast<size_t>(bytes) > shared_optin()) return cudaErrorInvalidValue;
  std::erase_if(allowed, [kernel](const Allowed& a) { return a.kernel == kernel; });
  allowed.push_back({kernel, static_cast<size_t>(bytes)});
  return cudaSuccess;
}

void forget_allowed() { allowed.clear(); }

void begin_shared_memory(const Launch& launch, unsigned set) {
  Arena& chosen = arenas[set];
  if (!chosen.begin) {
    chosen.begin = static_cast<char*>(std::aligned_alloc(kRedZone, kCapacity));
    if (!chosen.begin) std::abort();
    chosen.dirty = kCapacity;
  }
  arena = chosen.begin;
  unpoison(arena, chosen.dirty);
  fill(arena, chosen.dirty);
  poison(arena, kCapacity);
  used = kRedZone;
  num_arrays = 0;
  dynamic_bytes = counted_bytes = launch.dynamic_bytes;
  dynamic_allowed = kSharedByDefault;
  dynamic_was_allowed = false;
  for (const Allowed& a : allowed) {
    if (a.kernel != launch.kernel) continue;
    dynamic_allowed = a.bytes;
    dynamic_was_allowed = true;
  }
  if (dynamic_bytes > dynamic_allowed)
    fail("%s: dynamic shared memory of %zu bytes is more than the %zu allowed; is cudaFuncSetAttribute missing?",
         launch.name, dynamic_bytes, dynamic_allowed);
  dynamic_begin = place(dynamic_bytes, 16);
}

void end_shared_memory() {
  arenas[running->set].dirty = used;
  unpoison(arena, used);
  RunningBlock& b = *running;
  // The gaps between the arrays, in the order of their addresses.
  const char* gap = arena;
  for (unsigned i = 0; i <= num_arrays + 1 && !b.failed; ++i) {
    const bool last = i == num_arrays + 1;
    const char* end = last ? arena + used : i == 0 ? dynamic_begin : arrays[i - 1].begin;
    for (; gap < end; ++gap) {
      if (static_cast<unsigned char>(*gap) == kFill) continue;
      b.failed = true;
      std::snprintf(b.error, sizeof b.error, "block %u,%u,%u wrote to shared memory outside of its arrays, before %s",
                    b.index.x, b.index.y, b.index.z,
                    last     ? "the end"
                    : i == 0 ? "the dynamic part"
                             : arrays[i - 1].name);
      break;
    }
    if (!last) gap = end + (i == 0 ? dynamic_bytes : arrays[i - 1].bytes);
  }
}

}  // namespace cuda_emulator
