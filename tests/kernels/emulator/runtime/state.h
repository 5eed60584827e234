// Shared by the parts of the runtime: the running block and its threads.
#pragma once
#include <memory>

#include "../include/cuda_emulator.h"
#include "fiber.h"

namespace cuda_emulator {

// A barrier or warp collective that some threads have reached and others have not.
struct Meeting {
  uint32_t mask;
  Site site;
  unsigned needed, arrived;
  const void* token;  // orders memory; nullptr: the collective is no fence
};

// The threads that can run, each at most once.
class ReadyQueue {
 public:
  void clear() { head_ = size_ = 0; }
  bool empty() const { return size_ == 0; }
  void push(unsigned thread) { entries_[(head_ + size_++) % kMostThreads] = thread; }
  // The one that the schedule chooses.
  unsigned pop();

 private:
  unsigned entries_[kMostThreads];
  unsigned head_ = 0, size_ = 0;
};

// The warp collectives of one warp.
struct WarpMeetings {
  uint32_t open = 0;  // a bit per meeting
  Meeting meetings[kWarpSize];
};

struct RunningBlock : Block {
  Thread threads[kMostThreads];
  PendingCopy copies[kMostThreads][kMostCopies];  // outside Thread, so that a warp's lanes fit into a few cache lines
  Fiber all_fibers[kMostFibers];
  Fiber* fibers;                        // of this block's threads
  unsigned set;                         // which part of all fibers they are
  char ends[2][kMostSets];              // orders the work of a set's fibers in one block before that in the next
  const void *earlier_ends, *own_ends;  // two in turns: no thread's end is before another's start in a block
  ReadyQueue ready;
  unsigned num_alive;
  bool barrier_open;
  Meeting barrier;
  WarpMeetings collectives[kMostThreads / kWarpSize];
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
// The calling thread meets the other lanes of `mask` (32 threads from `lanes` on). The last to arrive calls `answer`.
using Answer = void (*)(Thread* lanes, uint32_t mask);
void meet(uint32_t mask, Site site, bool fence, Answer answer);
// An address that orders memory among the participants of one meeting.
const void* fresh_token();
// The calling thread's end.
void leave_collectives(Thread& thread);
bool same_site(const Site& a, const Site& b);
const char* file_name(const Site& site);

// Before each block: `set` numbers the memory, which is filled with ones and has room for dynamic and static arrays.
void begin_shared_memory(const Launch& launch, unsigned set);
// After each block: whether the red zones are unchanged.
void end_shared_memory();

// The most shared memory of a block, with an opt-in.
size_t shared_optin();

// Forgets what cudaFuncSetAttribute allowed.
void forget_allowed();

uint64_t next_random(uint64_t& state);
// Whether the launch is refused; cudaGetLastError() then returns the error.
bool refuse_launch();

}  // namespace cuda_emulator
