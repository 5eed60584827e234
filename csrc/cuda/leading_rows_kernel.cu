// The first rows of each class segment, without gaps.
//
// Where a class begins is a sum over the classes before it, in the result and in `pixels`. With few classes each block
// computes these sums in shared memory, so one launch does everything. With many, a block computes them in global
// memory, and a second launch reads them. Counts and limits on the device may hold anything: they are clamped.
#include "compat.cuh"
#include "leading_rows_kernel.h"
#include "rows.cuh"

namespace dgcl {

constexpr int kLeadingThreads = 256;
constexpr int64_t kSharedOffsets = 1024;  // most classes whose sums are in shared memory

__device__ __forceinline__ int64_t counted_rows(const LeadingRowsArguments& a, int64_t c) {
  return clamped(a.counts[c], a.num_pixels);
}

__device__ __forceinline__ int64_t wanted_rows(const LeadingRowsArguments& a, int64_t c) {
  const int64_t count = counted_rows(a, c), limit = clamped(a.limits[c], a.size);
  return count < limit ? count : limit;
}

// offsets[c] and starts[c] are sums over the classes before c, at most `size` and `num_pixels`. Called by a whole block.
// Each thread adds up some neighbouring classes.
__device__ __forceinline__ void sum_classes(const LeadingRowsArguments& a, int64_t* offsets, int64_t* starts) {
  DGCL_SHARED(int64_t, wanted, [kLeadingThreads]);
  DGCL_SHARED(int64_t, counted, [kLeadingThreads]);
  const int64_t each = (a.num_classes + kLeadingThreads - 1) / kLeadingThreads, thread = threadIdx.x;
  const int64_t first = thread * each < a.num_classes ? thread * each : a.num_classes,
                end = first + each < a.num_classes ? first + each : a.num_classes;
  int64_t offset = 0, start = 0;
  for (int64_t c = first; c < end; ++c) {
    offset += wanted_rows(a, c);
    start += counted_rows(a, c);
  }
  wanted[thread] = offset;
  counted[thread] = start;
  __syncthreads();
  offset = start = 0;
  for (int64_t t = 0; t < thread && t * each < a.num_classes; ++t) {
    offset += wanted[t];
    start += counted[t];
  }
  for (int64_t c = first; c < end; ++c) {
    offsets[c] = clamped(offset, a.size);
    starts[c] = clamped(start, a.num_pixels);
    offset += wanted_rows(a, c);
    start += counted_rows(a, c);
  }
  if (thread == kLeadingThreads - 1) {
    offsets[a.num_classes] = clamped(offset, a.size);
    starts[a.num_classes] = clamped(start, a.num_pixels);
  }
}

// One block.
__global__ void __launch_bounds__(kLeadingThreads) leading_offsets_kernel(LeadingRowsArguments a) {
  sum_classes(a, a.offsets, a.starts);
}

// A thread per row of the result. Dynamic shared memory with kSums: offsets and starts, num_classes + 1 of each.
template <bool kSums>
__global__ void __launch_bounds__(kLeadingThreads) leading_rows_kernel(LeadingRowsArguments a) {
  const int64_t *offsets = a.offsets, *starts = a.starts;
  if constexpr (kSums) {
    DGCL_DYNAMIC_SHARED(int64_t, sums);
    sum_classes(a, sums, sums + a.num_classes + 1);
    __syncthreads();
    offsets = sums;
    starts = sums + a.num_classes + 1;
    if (blockIdx.x == 0)
      for (int64_t c = threadIdx.x; c <= a.num_classes; c += kLeadingThreads) a.offsets[c] = sums[c];
  }
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kLeadingThreads + threadIdx.x;
  if (i >= a.size) return;
  // The class whose rows end after i; num_classes beyond the last row.
  const int64_t c = partition_point(a.num_classes, [&](int64_t c) { return offsets[c + 1] <= i; });
  a.rows[i] = a.pixels[clamped(starts[c] + (i - offsets[c]), a.num_pixels - 1)];
  a.classes[i] = c;
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
bool blocks_sum(int64_t num_classes) { return num_classes <= kSharedOffsets; }

int launch_leading_rows(const LeadingRowsArguments& a, void* stream) {
  const dim3 block(kLeadingThreads), grid = blocks_for(a.size > 0 ? a.size : 1, kLeadingThreads);
  if (blocks_sum(a.num_classes)) {
    const size_t smem = 2 * static_cast<size_t>(a.num_classes + 1) * sizeof(int64_t);
    DGCL_LAUNCH(leading_rows_kernel<true>, grid, block, smem, stream, a);
  } else {
    DGCL_LAUNCH(leading_offsets_kernel, dim3(1), block, 0, stream, a);
    DGCL_LAUNCH(leading_rows_kernel<false>, grid, block, 0, stream, a);
  }
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
