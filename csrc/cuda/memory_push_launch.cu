#include "memory_push_kernel.cuh"

namespace dgcl {
namespace {

bool aligned(const void* p, int64_t bytes) {
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(bytes)) % kPushVectorBytes == 0;
}

void launch_ring(const MemoryPushArguments& a, const RingPush& push, dim3 grid, void* stream) {
  const Dtype dtype = push.rows.dtype;
  const int64_t bytes = bytes_of(dtype);
  const int64_t row_stride = push.rows.row_stride * bytes, group_stride = push.rows.group_stride * bytes;
  const bool same_bytes = !push.normalize && push.ring_dtype == dtype;
  const bool wide = dtype == Dtype::float64 || push.ring_dtype == Dtype::float64;
  const dim3 block(kPushThreads);
  if (same_bytes && aligned(push.ring, push.dim * bytes) && aligned(push.rows.data, row_stride | group_stride))
    DGCL_LAUNCH(copy_rows_kernel, grid, block, 0, stream, a, push, push.dim * bytes, row_stride, group_stride);
  else if (wide && push.normalize)
    DGCL_LAUNCH((convert_rows_kernel<double, true>), grid, block, 0, stream, a, push);
  else if (wide)
    DGCL_LAUNCH((convert_rows_kernel<double, false>), grid, block, 0, stream, a, push);
  else if (push.normalize)
    DGCL_LAUNCH((convert_rows_kernel<float, true>), grid, block, 0, stream, a, push);
  else
    DGCL_LAUNCH((convert_rows_kernel<float, false>), grid, block, 0, stream, a, push);
}

}  // namespace

int launch_memory_push(const MemoryPushArguments& a, void* stream) {
  if (a.num_classes == 0) return 0;
  const int64_t most = a.num_rows < a.capacity ? a.num_rows : a.capacity;
  for (const RingPush& push : a.pushes)
    if (most > 0 && push.dim > 0) launch_ring(a, push, blocks_for(a.num_classes * most, kPushWarps), stream);
  DGCL_LAUNCH(advance_rings_kernel, blocks_for(a.num_classes, kPushThreads), dim3(kPushThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace dgcl
