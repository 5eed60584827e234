#include "class_counts_kernel.cuh"

namespace dgcl {
namespace {

constexpr int64_t kMostBlocks = 512;  // each block adds its histogram once; labels per block fit 32-bit counts

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

}  // namespace dgcl
