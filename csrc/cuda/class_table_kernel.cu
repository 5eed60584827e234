// A thread per entry. Offsets and order on the device may hold anything: they are clamped.
#include "class_table_kernel.h"
#include "compat.cuh"
#include "rows.cuh"

namespace dgcl {

constexpr int kTableThreads = 256;

__global__ void __launch_bounds__(kTableThreads) class_table_kernel(ClassTableArguments a) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kTableThreads + threadIdx.x;
  if (slot >= a.num_classes * a.width) return;
  const int64_t c = slot / a.width, i = slot - c * a.width;
  const int64_t at = a.last ? clamped(a.offsets[c + 1], a.num_pixels) - 1 - i : clamped(a.offsets[c], a.num_pixels) + i;
  int64_t entry = clamped(at, a.num_pixels - 1);
  if (a.order) entry = clamped(a.order[entry], a.num_pixels - 1);
  a.entries[slot] = entry;
  a.entry_pixels[slot] = a.pixels[entry];
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
int launch_class_table(const ClassTableArguments& a, void* stream) {
  const int64_t slots = a.num_classes * a.width;
  if (slots == 0) return 0;
  DGCL_LAUNCH(class_table_kernel, blocks_for(slots, kTableThreads), dim3(kTableThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
