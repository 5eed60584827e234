// The gradient of the maps: each pixel gets the sum of the rows that chose it. Rows are added in ascending order, so the
// bits are those of the CPU. Two launches, no sort:
//
//   1. mark_rows_kernel records the lowest and the highest row of each pixel.
//   2. scatter_rows_kernel has a warp per row. The lowest row of a pixel writes the pixel. If it is also the highest, it
//      is the only one, and its bits are copied. Else the warp searches the rows in between.
//
// The search is quadratic if many rows lie between two rows of one pixel. The loss never repeats a pixel.
#include "compat.cuh"
#include "gather_rows_backward_kernel.h"
#include "rows.cuh"

namespace dgcl {

constexpr int kScatterThreads = 256;
constexpr int kScatterWarps = kScatterThreads / kWarp;
constexpr int kScatterColumns = 8;  // per lane at a time, all loaded before the first is stored

__device__ __forceinline__ bool is_inside(const GatherRowsBackwardArguments& a, int64_t pixel) {
  return pixel >= 0 && pixel < a.num_images * a.area;
}

// A thread per row.
__global__ void __launch_bounds__(kScatterThreads) mark_rows_kernel(GatherRowsBackwardArguments a) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kScatterThreads + threadIdx.x;
  if (row >= a.num_rows) return;
  const int64_t pixel = a.pixels[row];
  if (!is_inside(a, pixel)) return;
  atomicMin(a.lowest + pixel, static_cast<uint32_t>(row));
  atomicMax(a.highest + pixel, static_cast<int32_t>(row));
}

// float, or double for double.
template <typename Stored>
using ScatterSum = decltype(widen(Stored()));

// Rounds to nearest even.
__device__ __forceinline__ void narrow(double x, double& out) { out = x; }
__device__ __forceinline__ void narrow(float x, float& out) { out = x; }
__device__ __forceinline__ void narrow(float x, __half& out) { out = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }

// x[i] is column `first + i * kWarp` of a row, and stays unset beyond its end.
template <typename Stored>
__device__ __forceinline__ void load_row_columns(const GatherRowsBackwardArguments& a, int64_t row, int64_t first,
                                                 Stored (&x)[kScatterColumns]) {
  const Stored* from = static_cast<const Stored*>(a.dL_drows) + row * a.dim;
#pragma unroll
  for (int i = 0; i < kScatterColumns; ++i)
    if (first + i * kWarp < a.dim) x[i] = from[first + i * kWarp];
}

// Adds to x, columns of the pixel's lowest row, those of its other rows in ascending order. Called by a whole warp.
template <typename Stored>
__device__ __forceinline__ void add_other_rows(const GatherRowsBackwardArguments& a, int64_t pixel, int64_t lowest,
                                               int64_t highest, int64_t first, Stored (&x)[kScatterColumns]) {
  const int lane = threadIdx.x % kWarp;
  ScatterSum<Stored> sum[kScatterColumns];
#pragma unroll
  for (int i = 0; i < kScatterColumns; ++i)
    if (first + i * kWarp < a.dim) sum[i] = widen(x[i]);
  for (int64_t start = lowest + 1; start <= highest; start += kWarp) {
    const bool same = start + lane <= highest && a.pixels[start + lane] == pixel;
    for (unsigned left = __ballot_sync(kFullWarp, same); left; left &= left - 1) {
      Stored y[kScatterColumns];
      load_row_columns(a, start + __ffs(left) - 1, first, y);
#pragma unroll
      for (int i = 0; i < kScatterColumns; ++i)
        if (first + i * kWarp < a.dim) sum[i] += widen(y[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kScatterColumns; ++i)
    if (first + i * kWarp < a.dim) narrow(sum[i], x[i]);
}

// A warp per row. All its branches are the same for the whole warp.
template <typename Stored>
__global__ void __launch_bounds__(kScatterThreads) scatter_rows_kernel(GatherRowsBackwardArguments a) {
  const int64_t row = own_warp<kScatterWarps>();
  if (row >= a.num_rows) return;
  const int64_t pixel = a.pixels[row];
  if (!is_inside(a, pixel) || a.lowest[pixel] != row) return;
  const int64_t highest = a.highest[pixel], image = pixel / a.area;
  Stored* out = static_cast<Stored*>(a.dL_dmaps) + image * a.dim * a.area + (pixel - image * a.area);
  const int lane = threadIdx.x % kWarp;
  for (int64_t first = lane; first - lane < a.dim; first += kScatterColumns * kWarp) {
    Stored x[kScatterColumns];
    load_row_columns(a, row, first, x);
    if (highest != row) add_other_rows(a, pixel, row, highest, first, x);
#pragma unroll
    for (int i = 0; i < kScatterColumns; ++i)
      if (first + i * kWarp < a.dim) out[(first + i * kWarp) * a.area] = x[i];
  }
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
namespace {

template <typename Stored>
void launch_scatter(const GatherRowsBackwardArguments& a, void* stream) {
  DGCL_LAUNCH(scatter_rows_kernel<Stored>, blocks_for(a.num_rows, kScatterWarps), dim3(kScatterThreads), 0, stream, a);
}

}  // namespace

int launch_gather_rows_backward(const GatherRowsBackwardArguments& a, void* stream) {
  DGCL_LAUNCH(mark_rows_kernel, blocks_for(a.num_rows, kScatterThreads), dim3(kScatterThreads), 0, stream, a);
  switch (a.dtype) {
    case Dtype::float16:
      launch_scatter<__half>(a, stream);
      break;
    case Dtype::bfloat16:
      launch_scatter<__nv_bfloat16>(a, stream);
      break;
    case Dtype::float32:
      launch_scatter<float>(a, stream);
      break;
    default:
      launch_scatter<double>(a, stream);
  }
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
