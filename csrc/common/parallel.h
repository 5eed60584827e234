// A work queue on PyTorch's thread pool. Items differ in cost, so threads fetch them one by one.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>

#include "platform.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace dgcl {

inline int64_t thread_count() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

// Declares to ThreadSanitizer what happens before what. A no-op in other builds.
#if defined(__SANITIZE_THREAD__)
inline void order_after_this(const void* mark) { __tsan_release(const_cast<void*>(mark)); }
inline void order_before_this(const void* mark) { __tsan_acquire(const_cast<void*>(mark)); }
#else
inline void order_after_this(const void*) {}
inline void order_before_this(const void*) {}
#endif

// A body for parallel_for that states what parallel_for guarantees, because ThreadSanitizer cannot see how the pool
// waits. Work runs after everything that the caller did before it, and before everything that the caller does later.
// Pieces of work have no order among each other. The marks are addresses within this object, so nothing is read before
// its order is known.
template <typename Body>
class PoolWork {
 public:
  explicit PoolWork(const Body& body) : body_(body) { order_after_this(this); }
  PoolWork(const PoolWork&) = delete;
  ~PoolWork() { order_before_this(&done_); }

  void operator()(int64_t begin, int64_t end) const {
    order_before_this(this);
    body_(begin, end);
    order_after_this(&done_);
  }

 private:
  const Body& body_;
  char done_ = 0;
};

// parallel_for over [0, workers), safe after a fork. A forked process has lost the threads of OpenMP's pool, and a
// thread that used the pool before the fork would wait for them forever. A new thread gets a new pool.
template <typename Work>
void in_parallel(int64_t workers, const Work& work) {
  const auto start = [&] { torch::stable::parallel_for(0, workers, 1, work); };
  if (in_forked_process())
    std::thread(start).join();
  else
    start();
}

// Calls work(next) on up to thread_count() threads. next() returns an item in [0, items), or -1 when none is left. So
// each thread sets up its scratch memory once. An exception in a thread is rethrown here.
template <typename Work>
void run_queue(int64_t items, const Work& work) {
  if (items <= 0) return;
  std::atomic<int64_t> cursor{0};
  auto next = [&]() -> int64_t {
    const int64_t item = cursor.fetch_add(1, std::memory_order_relaxed);
    return item < items ? item : -1;
  };
  const int64_t workers = std::min(items, thread_count());
  if (workers <= 1) {
    work(next);
    return;
  }
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  const auto body = [&](int64_t begin, int64_t end) {
    try {
      for (int64_t w = begin; w < end; ++w) work(next);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  };
  in_parallel(workers, PoolWork(body));
  if (error) std::rethrow_exception(error);
}

}  // namespace dgcl
