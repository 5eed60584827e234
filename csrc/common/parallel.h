// Work queue over PyTorch's own thread pool: items may cost very different amounts, so threads fetch them one by one.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace dgcl {

inline int64_t thread_count() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

// Calls work(next) on up to thread_count() threads; each thread calls next() until it returns -1, else an item in
// [0, items). A thread can therefore set up its scratch memory once.
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
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) work(next);
  });
}

}  // namespace dgcl
