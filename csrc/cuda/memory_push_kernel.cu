// Writes arriving rows into a ring, a warp per row; then updates the rings' counts and heads.
//
// Same bits as on the CPU: a unit row comes from the canonical sum, and an element changes its dtype by one rounding.
// Counts and heads on the device may hold anything. They are clamped, so that no slot is outside its ring.
#include "memory_push_kernel.h"
#include "rows.cuh"

namespace dgcl {

constexpr int kPushThreads = 256;
constexpr int kPushWarps = kPushThreads / kWarp;
constexpr int kPushVectorBytes = sizeof(uint4);

// Calls copy(c, i, slot) with the warp's row i of class c and its slot, if there is one. If more rows arrive than a
// ring holds, only the last ones are written, so no slot is written twice.
template <typename Copy>
__device__ __forceinline__ void with_own_row(const MemoryPushArguments& a, const Copy& copy) {
  const int64_t most = a.num_rows < a.capacity ? a.num_rows : a.capacity;
  const int64_t item = own_warp<kPushWarps>();
  if (item >= a.num_classes * most) return;
  const int64_t c = item / most;
  const int64_t arriving = clamped(a.row_counts[c], a.num_rows);
  const int64_t i = item - c * most + (arriving > a.capacity ? arriving - a.capacity : 0);
  if (i >= arriving) return;
  copy(c, i, c * a.capacity + (clamped(a.heads[c], a.capacity - 1) + i) % a.capacity);
}

// Converts through T, which holds the values of both dtypes exactly.
template <typename T, bool kNormalize>
__global__ void __launch_bounds__(kPushThreads) convert_rows_kernel(MemoryPushArguments a, RingPush push) {
  with_own_row(a, [&](int64_t c, int64_t i, int64_t slot) {
    const RowReader<T> row(push.rows, i, c);
    RowNorm<T> norm;
    if constexpr (kNormalize) norm = warp_row_norm<T>(row, push.dim);
    for (int64_t d = threadIdx.x % kWarp; d < push.dim; d += kWarp)
      store_element<T>(push.ring, push.ring_dtype, slot * push.dim + d,
                       kNormalize ? unit_element(row(d), norm) : row(d));
  });
}

// Copies rows that need no conversion and are aligned for vectors: `row_bytes` per row. Strides are in bytes.
__global__ void __launch_bounds__(kPushThreads)
    copy_rows_kernel(MemoryPushArguments a, RingPush push, int64_t row_bytes, int64_t row_stride,
                     int64_t group_stride) {
  with_own_row(a, [&](int64_t c, int64_t i, int64_t slot) {
    const char* from = static_cast<const char*>(push.rows.data) + c * group_stride + i * row_stride;
    char* to = static_cast<char*>(push.ring) + slot * row_bytes;
    for (int64_t at = threadIdx.x % kWarp * kPushVectorBytes; at < row_bytes; at += kWarp * kPushVectorBytes)
      store_vector(to + at, load_vector<uint4>(from + at));
  });
}

// Runs last in the stream, because the kernels above read the old heads.
__global__ void __launch_bounds__(kPushThreads) advance_rings_kernel(MemoryPushArguments a) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kPushThreads + threadIdx.x;
  if (c >= a.num_classes) return;
  const int64_t arriving = clamped(a.row_counts[c], a.num_rows);
  a.heads[c] = (clamped(a.heads[c], a.capacity - 1) + arriving) % a.capacity;
  a.counts[c] = clamped(clamped(a.counts[c], a.capacity) + arriving, a.capacity);
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
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
#endif

}  // namespace dgcl
