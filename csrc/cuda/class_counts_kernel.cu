// A histogram of labels. Each block fills a histogram in shared memory, if it fits, and adds it to the result at the end.
#include "class_counts_kernel.h"
#include "compat.cuh"

namespace dgcl {

constexpr int kCountThreads = 256;
constexpr int64_t kSharedClasses = 8192;  // with more classes, blocks count in the result itself

// Dynamic shared memory: num_classes unsigned counts, if num_classes <= kSharedClasses.
template <typename Label>
__global__ void __launch_bounds__(kCountThreads) class_counts_kernel(ClassCountsArguments a) {
  DGCL_DYNAMIC_SHARED(unsigned, block_counts);
  const bool shared = a.num_classes <= kSharedClasses;
  if (shared) {
    for (int64_t c = threadIdx.x; c < a.num_classes; c += blockDim.x) block_counts[c] = 0;
    __syncthreads();
  }
  unsigned long long* counts = reinterpret_cast<unsigned long long*>(a.counts);
  const Label* labels = static_cast<const Label*>(a.labels);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.num_labels; i += step) {
    const int64_t c = static_cast<int64_t>(labels[i]);
    if (c < 0 || c >= a.num_classes || c == a.ignore_index) continue;
    if (shared)
      atomicAdd(&block_counts[c], 1u);
    else
      atomicAdd(&counts[c], 1ull);
  }
  if (!shared) return;
  __syncthreads();
  for (int64_t c = threadIdx.x; c < a.num_classes; c += blockDim.x)
    if (block_counts[c]) atomicAdd(&counts[c], static_cast<unsigned long long>(block_counts[c]));
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
namespace {

constexpr int64_t kMostBlocks = 512;  // each adds its histogram once; labels per block fit 32-bit counts

template <typename Label>
void launch(const ClassCountsArguments& a, void* stream) {
  const int64_t wanted = (a.num_labels + kCountThreads - 1) / kCountThreads;
  const unsigned blocks = static_cast<unsigned>(wanted < kMostBlocks ? wanted : kMostBlocks);
  const size_t smem = a.num_classes <= kSharedClasses ? a.num_classes * sizeof(unsigned) : 0;
  DGCL_LAUNCH(class_counts_kernel<Label>, dim3(blocks), dim3(kCountThreads), smem, stream, a);
}

}  // namespace

int launch_class_counts(const ClassCountsArguments& a, void* stream) {
  if (a.num_labels == 0) return 0;
  if (a.label_bytes == 8)
    launch<int64_t>(a, stream);
  else if (a.label_bytes == 4)
    launch<int32_t>(a, stream);
  else if (a.label_bytes == 2)
    launch<int16_t>(a, stream);
  else if (a.is_unsigned)
    launch<uint8_t>(a, stream);
  else
    launch<int8_t>(a, stream);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
