// Runs blocks: starts a fiber per thread, resumes ready ones in the schedule's order, and reports those that are stuck.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "state.h"

namespace cuda_emulator {

Thread* current_thread = nullptr;
Block* current_block = nullptr;
std::unique_ptr<RunningBlock> running;

namespace {

int describe(char* out, size_t size, const Thread& thread) {
  const char* what = thread.state == Thread::State::finished ? "exited" : thread.site.what;
  return std::snprintf(out, size, "thread %u (%s at %s:%d, mask %08x)", thread.number, what ? what : "running",
                       file_name(thread.site), thread.site.line, thread.mask);
}

void report_deadlock(RunningBlock& b) {
  b.failed = true;
  size_t used = std::snprintf(b.error, sizeof b.error, "deadlock in block %u,%u,%u:", b.index.x, b.index.y, b.index.z);
  int listed = 0;
  for (unsigned i = 0; i < b.num_threads && listed < 6; ++i) {
    if (b.threads[i].state != Thread::State::waiting || used + 160 > sizeof b.error) continue;
    used += std::snprintf(b.error + used, sizeof b.error - used, "\n  ");
    used += describe(b.error + used, sizeof b.error - used, b.threads[i]);
    ++listed;
  }
}

void exit_thread() {
  Thread& thread = *current_thread;
  if (thread.num_copies) fail("thread exited with %u cp.async copies never waited for", thread.num_copies);
  thread.state = Thread::State::finished;
  --running->num_alive;
  leave_collectives(thread);
  release(running->own_ends);
  release(running.get());
}

// Runs the next thread, or the scheduler if there is none.
void leave(bool finished) {
  RunningBlock& b = *running;
  Fiber& own = b.fibers[current_thread->number];
  if (b.ready.empty()) return own.switch_back(finished);
  current_thread = &b.threads[b.ready.pop()];
  own.switch_to(b.fibers[current_thread->number], finished);
}

void fiber_entry() {
  Fiber::begin();
  acquire(&running->context);  // the launch
  acquire(running->earlier_ends);
  running->entry(running->context);
  exit_thread();
  leave(true);
  std::abort();
}

void prepare_threads(RunningBlock& b) {
  b.num_alive = b.num_threads;
  b.barrier_open = false;
  for (unsigned w = 0; w < (b.num_threads + kWarpSize - 1) / kWarpSize; ++w) b.collectives[w].open = 0;
  b.ready.clear();
  for (unsigned i = 0; i < b.num_threads; ++i) {
    Thread& t = b.threads[i];
    t.index = {i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y)};
    t.number = i;
    t.lane = i % kWarpSize;
    t.warp = i / kWarpSize;
    t.state = Thread::State::ready;
    t.site = Site{};
    t.mask = 0;
    t.first_copy = t.num_copies = t.open_group = 0;
    b.fibers[i].prepare(fiber_entry, i);
    b.ready.push(i);
  }
}

void run_block(RunningBlock& b) {
  prepare_threads(b);
  current_block = &b;
  const unsigned first = b.ready.pop();
  current_thread = &b.threads[first];
  b.fibers[first].switch_to();  // returns when all threads have finished or wait, or when one fails
  current_thread = nullptr;
  if (!b.failed && b.num_alive) report_deadlock(b);
}

}  // namespace

Options& options() {
  static Options chosen;
  return chosen;
}

std::map<std::string, uint64_t>& passed_barriers() {
  static std::map<std::string, uint64_t> passed;
  return passed;
}

uint64_t next_random(uint64_t& state) {  // xorshift
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

uint64_t random_number() { return next_random(running->random_state); }

unsigned ReadyQueue::pop() {
  const Schedule schedule = options().schedule;
  if (schedule != Schedule::sequential) {
    const unsigned chosen = schedule == Schedule::reverse ? size_ - 1 : random_number() % size_;
    std::swap(entries_[(head_ + chosen) % kMostThreads], entries_[head_]);
  }
  const unsigned thread = entries_[head_];
  head_ = (head_ + 1) % kMostThreads;
  --size_;
  return thread;
}

const char* file_name(const Site& site) {
  if (!site.file) return "-";
  const char* slash = std::strrchr(site.file, '/');
  return slash ? slash + 1 : site.file;
}

bool same_site(const Site& a, const Site& b) {
  if (a.line == b.line && a.what == b.what && a.file == b.file) return true;  // usual; strcmp is slow under sanitizers
  return a.line == b.line && !std::strcmp(a.what, b.what) && !std::strcmp(a.file, b.file);
}

void wait() {
  current_thread->state = Thread::State::waiting;
  leave(false);
}

void wake(Thread& thread) {
  thread.state = Thread::State::ready;
  thread.site.what = nullptr;
  running->ready.push(thread.number);
}

const void* fresh_token() {
  static char tokens[1 << 13][8];
  static unsigned next = 0;
  return tokens[next++ % (1 << 13)];
}

void fail(const char* format, ...) {
  char text[640];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  if (!current_thread) throw std::runtime_error(std::string("CUDA emulator: ") + text);
  RunningBlock& b = *running;
  const int used =
      std::snprintf(b.error, sizeof b.error, "%s [block %u,%u,%u, ", text, b.index.x, b.index.y, b.index.z);
  describe(b.error + used, sizeof b.error - used - 1, *current_thread);
  std::strcat(b.error, "]");
  b.failed = true;
  release(&b);
  b.fibers[current_thread->number].switch_back(false);  // abandoned, like all others
  std::abort();
}

namespace {

void check_limits(const Launch& launch) {
  const dim3 block = launch.block, grid = launch.grid;
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64)
    fail("%s: a block may have 1 to 1024 threads, got %u x %u x %u", launch.name, block.x, block.y, block.z);
  if (!grid.x || !grid.y || !grid.z || grid.x > 2147483647u || grid.y > 65535u || grid.z > 65535u)
    fail("%s: a grid may have 1 to 2147483647 x 65535 x 65535 blocks, got %u x %u x %u", launch.name, grid.x, grid.y,
         grid.z);
}

// The number of the i-th block to run.
uint64_t block_in_order(uint64_t i, uint64_t total, uint64_t start) {
  switch (options().schedule) {
    case Schedule::sequential:
      return i;
    case Schedule::reverse:
      return total - 1 - i;
    default:
      return (i + start) % total;
  }
}

}  // namespace

void run_grid(const Launch& launch, void (*thread)(void*), void* context) {
  static std::mutex one_at_a_time;  // autograd launches from its own thread
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  check_limits(launch);
  if (refuse_launch()) return;
  if (launch.stream != current_stream()) fail("%s: not launched to the current stream", launch.name);
  if (!running) running = std::make_unique<RunningBlock>();
  RunningBlock& b = *running;
  b.entry = thread;
  b.context = context;
  b.size = launch.block;
  b.grid = launch.grid;
  b.num_threads = b.size.x * b.size.y * b.size.z;
  b.failed = false;
  b.barriers = 0;
  const uint64_t total = static_cast<uint64_t>(b.grid.x) * b.grid.y * b.grid.z;
  b.random_state = options().seed * 0x9e3779b97f4a7c15ull | 1;
  for (int i = 0; i < 8; ++i) random_number();  // small seeds start with similar numbers
  const uint64_t start = random_number() % total;
  const unsigned sets = std::min(kMostFibers / b.num_threads, kMostSets);
  release(&b.context);
  for (uint64_t i = 0; i < total && !b.failed; ++i) {
    const uint64_t n = block_in_order(i, total, start);
    b.index = {static_cast<unsigned>(n % b.grid.x), static_cast<unsigned>(n / b.grid.x % b.grid.y),
               static_cast<unsigned>(n / b.grid.x / b.grid.y)};
    b.set = static_cast<unsigned>(i % sets);
    b.fibers = &b.all_fibers[b.set * b.num_threads];
    b.own_ends = &b.ends[i / sets % 2][b.set];
    b.earlier_ends = &b.ends[1 - i / sets % 2][b.set];
    begin_shared_memory(launch, b.set);
    run_block(b);
    end_shared_memory();
  }
  acquire(&b);
  current_block = nullptr;
  passed_barriers()[launch.name] += b.barriers;
  // Printed immediately: after a failed launch, a sanitizer may report a race when the host frees memory that abandoned
  // threads used.
  if (b.failed) std::fprintf(stderr, "CUDA emulator: %s: %s\n", launch.name, b.error);
  if (b.failed) throw std::runtime_error(std::string("CUDA emulator: ") + launch.name + ": " + b.error);
}

}  // namespace cuda_emulator
