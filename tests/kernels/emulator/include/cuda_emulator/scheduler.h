// Threads and blocks as kernels see them, and their schedule.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "language.h"

namespace cuda_emulator {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMostThreads = 1024;  // per block

// The order in which runnable threads run, and blocks, too. Results must not depend on it.
enum class Schedule { sequential, reverse, random };

struct Options {
  Schedule schedule = Schedule::sequential;
  uint64_t seed = 1;
  int multiprocessors = 3;     // of the device that launchers see; few, so that loops over the grid iterate
  int shared_kilobytes = 100;  // per multiprocessor; a block may use one less
  int refuse_launch = 0;  // an error code: the next kernel does not run, and cudaGetLastError() returns the code once
};
Options& options();

// Moves to another device. cudaFuncSetAttribute has allowed nothing there.
void next_device();

// next_device(), and forgets what was counted.
void reset();

// Calls of the runtime since reset(), by function.
std::map<std::string, uint64_t>& runtime_calls();

// Block barriers that each kernel has passed since reset(), by launch name. Shows how much work it had.
std::map<std::string, uint64_t>& passed_barriers();

// A place in a kernel where threads meet.
struct Site {
  const char* what = nullptr;
  const char* file = nullptr;
  int line = 0;
};

// A pending cp.async copy.
struct PendingCopy {
  void* to;
  const void* from;
  unsigned bytes, zeros, group;
};
constexpr unsigned kMostCopies = 256;

// One lane's part in a warp collective.
struct WarpArgument {
  uint64_t value;         // shuffle, vote: in and out
  int source;             // shuffle
  const uint32_t *a, *b;  // matrix product
  const float* c;
  float d[4];
};

struct Thread {
  enum class State : uint8_t { ready, waiting, finished };
  uint3 index;
  unsigned number, lane, warp;
  State state;
  Site site;      // where it waits
  uint32_t mask;  // lanes it waits for; 0: the block
  WarpArgument argument;
  unsigned first_copy, num_copies, open_group;  // of its ring of pending copies
};

struct Block {
  uint3 index;
  dim3 size, grid;
  unsigned num_threads;
};

extern Thread* current_thread;
extern Block* current_block;

// Ends the launch with an error that names block, thread and place. Callable from kernels and from the host.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The next number of the block's generator. It decides what hardware leaves open.
uint64_t random_number();

}  // namespace cuda_emulator

#define threadIdx (::cuda_emulator::current_thread->index)
#define blockIdx (::cuda_emulator::current_block->index)
#define blockDim (::cuda_emulator::current_block->size)
#define gridDim (::cuda_emulator::current_block->grid)
