// Every collective is a meeting. The last thread to arrive does the work for all.
#include <bit>
#include <utility>

#include "state.h"

namespace cuda_emulator {
namespace {

// Arrives at the meeting of `mask`. True for the last one: it closes the meeting, and must answer and wake all others.
bool arrive(uint32_t mask, Site site, Meeting& meeting) {
  Thread& me = *current_thread;
  me.mask = mask;
  me.site = site;
  if (meeting.token) release(meeting.token);
  return ++meeting.arrived == meeting.needed;
}

Meeting& find_or_open(uint32_t mask, Site site, bool fence) {
  Thread& me = *current_thread;
  WarpMeetings& warp = running->collectives[me.warp];
  if (!(mask >> me.lane & 1)) fail("%s: mask %08x does not name the calling lane %u", site.what, mask, me.lane);
  for (uint32_t open = warp.open; open; open &= open - 1) {
    Meeting& m = warp.meetings[std::countr_zero(open)];
    if (!(m.mask & mask)) continue;
    if (m.mask != mask || !same_site(m.site, site))
      fail("divergent warp collective: %s(mask %08x) at %s:%d meets %s(mask %08x) at %s:%d", site.what, mask,
           file_name(site), site.line, m.site.what, m.mask, file_name(m.site), m.site.line);
    return m;
  }
  for (unsigned l = 0; l < kWarpSize; ++l) {
    const unsigned i = me.warp * kWarpSize + l;
    const bool gone = i >= running->num_threads || running->threads[i].state == Thread::State::finished;
    if ((mask >> l & 1) && gone)
      fail("%s at %s:%d: mask %08x names lane %u, which has exited or does not exist", site.what, file_name(site),
           site.line, mask, l);
  }
  const int unused = std::countr_one(warp.open);
  warp.open |= 1u << unused;
  const unsigned needed = static_cast<unsigned>(std::popcount(mask));
  return warp.meetings[unused] = Meeting{mask, site, needed, 0, fence ? fresh_token() : nullptr};
}

}  // namespace

void meet(uint32_t mask, Site site, bool fence, Answer answer) {
  Thread& me = *current_thread;
  Meeting& meeting = find_or_open(mask, site, fence);
  const void* token = meeting.token;
  if (arrive(mask, site, meeting)) {
    Thread* lanes = &running->threads[me.warp * kWarpSize];
    WarpMeetings& warp = running->collectives[me.warp];
    warp.open &= ~(1u << (&meeting - warp.meetings));
    if (answer) answer(lanes, mask);
    for (unsigned l = 0; l < kWarpSize; ++l)
      if ((mask >> l & 1) && &lanes[l] != &me) wake(lanes[l]);
  } else {
    wait();
  }
  me.site.what = nullptr;
  if (token) acquire(token);
}

namespace {

void open_barrier() {
  RunningBlock& b = *running;
  b.barrier_open = false;
  ++b.barriers;
  for (unsigned i = 0; i < b.num_threads; ++i)
    if (b.threads[i].state == Thread::State::waiting) wake(b.threads[i]);
}

void answer_shuffle(Thread* lanes, uint32_t mask) {
  uint64_t values[kWarpSize];
  for (unsigned l = 0; l < kWarpSize; ++l) values[l] = lanes[l].argument.value;
  for (unsigned l = 0; l < kWarpSize; ++l) {
    if (!(mask >> l & 1)) continue;
    const int source = lanes[l].argument.source;
    if (!(mask >> source & 1)) fail("shuffle: lane %u reads lane %d, which is not in mask %08x", l, source, mask);
    lanes[l].argument.value = values[source];
  }
}

void answer_ballot(Thread* lanes, uint32_t mask) {
  uint32_t votes = 0;
  for (unsigned l = 0; l < kWarpSize; ++l)
    if ((mask >> l & 1) && lanes[l].argument.value) votes |= 1u << l;
  for (unsigned l = 0; l < kWarpSize; ++l)
    if (mask >> l & 1) lanes[l].argument.value = votes;
}

}  // namespace

void block_barrier(Site site) {
  RunningBlock& b = *running;
  Thread& me = *current_thread;
  Meeting& barrier = b.barrier;
  if (!std::exchange(b.barrier_open, true))
    barrier = Meeting{0, site, b.num_threads, 0, fresh_token()};
  else if (!same_site(barrier.site, site))
    fail("divergent %s at %s:%d: others wait in %s at %s:%d", site.what, file_name(site), site.line, barrier.site.what,
         file_name(barrier.site), barrier.site.line);
  if (b.num_alive != b.num_threads)
    fail("%s at %s:%d after a thread of the block has exited", site.what, file_name(site), site.line);
  const void* token = barrier.token;
  if (arrive(0, site, barrier))
    open_barrier();
  else
    wait();
  me.site.what = nullptr;
  acquire(token);
}

void warp_barrier(uint32_t mask, Site site) { meet(mask, site, true, nullptr); }

uint64_t shuffle(uint32_t mask, uint64_t value, int source, Site site) {
  WarpArgument& argument = current_thread->argument;
  argument.value = value;
  argument.source = source;
  meet(mask, site, false, answer_shuffle);
  return argument.value;
}

uint32_t ballot(uint32_t mask, bool vote, Site site) {
  WarpArgument& argument = current_thread->argument;
  argument.value = vote;
  meet(mask, site, false, answer_ballot);
  return static_cast<uint32_t>(argument.value);
}

void leave_collectives(Thread& thread) {
  const WarpMeetings& warp = running->collectives[thread.warp];
  for (uint32_t open = warp.open; open; open &= open - 1) {
    const Meeting& m = warp.meetings[std::countr_zero(open)];
    if (m.mask >> thread.lane & 1)
      fail("lane %u exited, but %s at %s:%d (mask %08x) waits for it", thread.lane, m.site.what, file_name(m.site),
           m.site.line, m.mask);
  }
  const Meeting& barrier = running->barrier;
  if (running->barrier_open)
    fail("thread %u exited, but %s at %s:%d waits for it", thread.number, barrier.site.what, file_name(barrier.site),
         barrier.site.line);
}

}  // namespace cuda_emulator
