// Sums of table rows. A thread owns a column of a class and adds in the order of the table, so the bits are the CPU's.
//
// Counts and indices on the device may hold anything. They are clamped, so nothing outside the rows is read.
#include "rows.cuh"
#include "sum_rows_kernel.h"

namespace dgcl {

constexpr int kSumThreads = 64;  // small blocks: 21 classes of 256 columns are 84 of them

template <typename Stored, typename T>
__global__ void __launch_bounds__(kSumThreads) sum_rows_kernel(SumRowsArguments a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= a.num_classes * a.dim) return;
  const int64_t c = i / a.dim;
  const Stored* column = static_cast<const Stored*>(a.rows.data) + c * a.rows.group_stride + (i - c * a.dim);
  const int64_t count = a.num_rows > 0 ? clamped(a.row_counts[c], a.width) : 0;
  T sum = 0;
#pragma unroll 8
  for (int64_t j = 0; j < count; ++j) {
    const int64_t row = a.indices == nullptr ? j : clamped(a.indices[c * a.width + j], a.num_rows - 1);
    sum += static_cast<T>(widen(column[row * a.rows.row_stride]));
  }
  static_cast<T*>(a.sums)[i] = sum;
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
namespace {

template <typename Stored, typename T>
void launch_sums(const SumRowsArguments& a, void* stream) {
  DGCL_LAUNCH((sum_rows_kernel<Stored, T>), blocks_for(a.num_classes * a.dim, kSumThreads), dim3(kSumThreads), 0,
              stream, a);
}

template <typename Stored>
void launch_narrow(const SumRowsArguments& a, void* stream) {
  if (a.in_float64)
    launch_sums<Stored, double>(a, stream);
  else
    launch_sums<Stored, float>(a, stream);
}

}  // namespace

int launch_sum_rows(const SumRowsArguments& a, void* stream) {
  if (a.num_classes * a.dim == 0) return 0;
  switch (a.rows.dtype) {
    case Dtype::float16:
      launch_narrow<__half>(a, stream);
      break;
    case Dtype::bfloat16:
      launch_narrow<__nv_bfloat16>(a, stream);
      break;
    case Dtype::float32:
      launch_narrow<float>(a, stream);
      break;
    default:
      launch_sums<double, double>(a, stream);
  }
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
