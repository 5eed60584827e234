// What the parts of the runtime share: the block that runs and its threads.
#pragma once
#include <memory>

#include "../include/cuda_emulator.h"
#include "fiber.h"

namespace cuda_emulator {

// A barrier or warp collective that some have reached and others not yet.
struct Meeting {
  bool open;
  uint32_t mask;
  Site site;
  unsigned needed, arrived;
  const void* token;  // orders memory; nullptr: a collective that is no fence
};

// Which threads can run; each is in it at most once.
class ReadyQueue {
 public:
  void clear() { head_ = size_ = 0; }
  bool empty() const { return size_ == 0; }
  void push(unsigned thread) { entries_[(head_ + size_++) % kMostThreads] = thread; }
  // The one that the schedule says.
  unsigned pop();

 private:
  unsigned entries_[kMostThreads];
  unsigned head_ = 0, size_ = 0;
};

struct RunningBlock : Block {
  Thread threads[kMostThreads];
  Fiber all_fibers[kMostFibers];
  Fiber* fibers;                        // of this block's threads
  unsigned set;                         // which part of all fibers they are
  char ends[2][kMostSets];              // orders what a set's fibers do in one block before what they do in the next
  const void *earlier_ends, *own_ends;  // two by turns: a thread's end is before no other's begin in the same block
  ReadyQueue ready;
  unsigned num_alive;
  Meeting barrier;
  Meeting collectives[kMostThreads / kWarpSize][kWarpSize];
  uint64_t random_state;
  void (*entry)(void*);
  void* context;
  uint64_t barriers;  // of the grid, passed so far
  bool failed;
  char error[1024];
};
extern std::unique_ptr<RunningBlock> running;

// Suspends the calling thread until wake(). In its own words: `state` is set before, and read by reports.
void wait();
void wake(Thread& thread);
// The calling thread meets the other lanes of `mask` (32 threads from `lanes` on); the last to come calls `answer`.
using Answer = void (*)(Thread* lanes, uint32_t mask);
void meet(uint32_t mask, Site site, bool fence, Answer answer);
// An address that orders memory among those who meet once.
const void* fresh_token();
// The calling thread's end.
void leave_collectives(Thread& thread);
bool same_site(const Site& a, const Site& b);
const char* file_name(const Site& site);

// Before each block: `set` numbers the memory, filled with ones; room for the dynamic part and static arrays.
void begin_shared_memory(const Launch& launch, unsigned set);
// After it: whether the red zones are as they were.
void end_shared_memory();

uint64_t next_random(uint64_t& state);
// Whether the launch is not to run; cudaGetLastError() then says so.
bool refuse_launch();

}  // namespace cuda_emulator
