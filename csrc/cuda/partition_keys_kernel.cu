// The sorting key of each pixel, and a histogram of slots (math/partition_key.h). Each block fills a histogram in shared
// memory, if it fits, and adds it to the result at the end.
#include "../math/partition_key.h"
#include "compat.cuh"
#include "partition_keys_kernel.h"

namespace dgcl {

constexpr int kPartitionThreads = 256;
constexpr int64_t kSharedSlots = 8192;  // with more slots, blocks count in the result itself

// Dynamic shared memory: an unsigned count for each slot, if there are at most kSharedSlots.
template <typename Label>
__global__ void __launch_bounds__(kPartitionThreads) partition_keys_kernel(PartitionKeysArguments a) {
  DGCL_DYNAMIC_SHARED(unsigned, block_counts);
  const int64_t slots = a.num_classes + kSkippedSlots;
  const bool shared = slots <= kSharedSlots;
  if (shared) {
    for (int64_t s = threadIdx.x; s < slots; s += blockDim.x) block_counts[s] = 0;
    __syncthreads();
  }
  unsigned long long* counts = reinterpret_cast<unsigned long long*>(a.counts);
  const Label* labels = static_cast<const Label*>(a.labels);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.num_pixels; i += step) {
    const int64_t slot = pixel_slot(labels[i], a.usable[i] != 0, a.num_classes, a.ignore_index);
    a.keys[i] = partition_key(slot, a.num_classes, a.bits[i]);
    if (shared)
      atomicAdd(&block_counts[slot], 1u);
    else
      atomicAdd(&counts[slot], 1ull);
  }
  if (!shared) return;
  __syncthreads();
  for (int64_t s = threadIdx.x; s < slots; s += blockDim.x)
    if (block_counts[s]) atomicAdd(&counts[s], static_cast<unsigned long long>(block_counts[s]));
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
namespace {

constexpr int64_t kMostBlocks = 512;  // each adds its histogram once; pixels per block fit 32-bit counts

template <typename Label>
void launch(const PartitionKeysArguments& a, void* stream) {
  const int64_t wanted = (a.num_pixels + kPartitionThreads - 1) / kPartitionThreads;
  const unsigned blocks = static_cast<unsigned>(wanted < kMostBlocks ? wanted : kMostBlocks);
  const int64_t slots = a.num_classes + kSkippedSlots;
  const size_t smem = slots <= kSharedSlots ? slots * sizeof(unsigned) : 0;
  DGCL_LAUNCH(partition_keys_kernel<Label>, dim3(blocks), dim3(kPartitionThreads), smem, stream, a);
}

}  // namespace

int launch_partition_keys(const PartitionKeysArguments& a, void* stream) {
  if (a.num_pixels == 0) return 0;
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
