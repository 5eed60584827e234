// A block per class. It first adds up the counts of all classes, and those of the classes before its own. So one launch
// does everything, for any number of classes. Counts on the device may hold anything: they are clamped.
#include "../math/negatives.h"
#include "compat.cuh"
#include "draw_negatives_kernel.h"
#include "rows.cuh"

namespace dgcl {

constexpr int kDrawThreads = 256;

// The segment of class c. Called by a whole block.
__device__ __forceinline__ ClassSegment sum_counts(const DrawNegativesArguments& a, int64_t c) {
  DGCL_SHARED(int64_t, before, [kDrawThreads]);
  DGCL_SHARED(int64_t, all, [kDrawThreads]);
  int64_t start = 0, total = 0;
  for (int64_t other = threadIdx.x; other < a.num_classes; other += kDrawThreads) {
    const int64_t count = clamped(a.counts[other], a.num_pixels);
    total += count;
    if (other < c) start += count;
  }
  before[threadIdx.x] = start;
  all[threadIdx.x] = total;
  __syncthreads();
  start = total = 0;
  for (int t = 0; t < kDrawThreads && t < a.num_classes; ++t) {
    start += before[t];
    total += all[t];
  }
  const int64_t own = clamped(a.counts[c], a.num_pixels);
  return {start, own, clamped(total, a.num_pixels) - own};
}

__global__ void __launch_bounds__(kDrawThreads) draw_negatives_kernel(DrawNegativesArguments a) {
  const int64_t c = blockIdx.x;
  const ClassSegment segment = sum_counts(a, c);
  for (int64_t i = threadIdx.x; i < a.limit; i += kDrawThreads) {
    const int64_t position = negative_position(segment, i, a.limit, a.bits[c * a.limit + i]);
    a.negatives[c * a.limit + i] = a.pixels[clamped(position, a.num_pixels - 1)];
  }
  if (threadIdx.x == 0) a.negative_counts[c] = segment.others < a.limit ? segment.others : a.limit;
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
int launch_draw_negatives(const DrawNegativesArguments& a, void* stream) {
  if (a.num_classes == 0) return 0;
  DGCL_LAUNCH(draw_negatives_kernel, blocks_for(a.num_classes, 1), dim3(kDrawThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
