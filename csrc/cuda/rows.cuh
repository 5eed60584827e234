// Reads and writes rows of any dtype, and computes the canonical sums of a warp.
#pragma once
#include <limits>

#include "../math/canonical.h"
#include "../math/unit_row.h"
#include "compat.cuh"
#include "rows.h"

namespace dgcl {

static_assert(kWarp == kLanes);  // a lane for each partial sum of the canonical sums
constexpr int kRowThreads = 256, kRowsPerBlock = kRowThreads / kWarp;  // for kernels with a warp per row

// Counts and offsets on the device may hold anything. Clamped to [0, largest], they cannot reach outside the tensors.
__device__ __forceinline__ int64_t clamped(int64_t value, int64_t largest) {
  return value < 0 ? 0 : value > largest ? largest : value;
}

// The number of leading i in 0, ..., n - 1 for which `holds` is true, by bisection. Between 0 and n in any case.
template <typename Holds>
__device__ __forceinline__ int64_t partition_point(int64_t n, const Holds& holds) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (holds(middle))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// Element i, widened to T. Exact except for float64 read as float, which no operator uses.
template <typename T>
__device__ __forceinline__ T load_element(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::float16:
      return static_cast<T>(widen(static_cast<const __half*>(data)[i]));
    case Dtype::bfloat16:
      return static_cast<T>(widen(static_cast<const __nv_bfloat16*>(data)[i]));
    case Dtype::float32:
      return static_cast<T>(static_cast<const float*>(data)[i]);
    default:
      return static_cast<T>(static_cast<const double*>(data)[i]);
  }
}

// Stores a value, rounded to nearest even. float64 goes to 16 bits through float32, as on the CPU.
template <typename T>
__device__ __forceinline__ void store_element(void* data, Dtype dtype, int64_t i, T value) {
  switch (dtype) {
    case Dtype::float16:
      static_cast<__half*>(data)[i] = __float2half_rn(static_cast<float>(value));
      break;
    case Dtype::bfloat16:
      static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(static_cast<float>(value));
      break;
    case Dtype::float32:
      static_cast<float*>(data)[i] = static_cast<float>(value);
      break;
    default:
      static_cast<double*>(data)[i] = static_cast<double>(value);
  }
}

// A row as a function of the column.
template <typename T>
struct RowReader {
  const void* data;
  Dtype dtype;
  int64_t begin;

  __device__ RowReader(const RowView& rows, int64_t i, int64_t group)
      : data(rows.data), dtype(rows.dtype), begin(group * rows.group_stride + i * rows.row_stride) {}
  __device__ T operator()(int64_t d) const { return load_element<T>(data, dtype, begin + d); }
};

// The canonical tree (csrc/math/canonical.h). Every lane returns the sum of the 32 partial sums.
template <typename T>
__device__ __forceinline__ T warp_reduce_sum(T partial) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) partial += __shfl_xor_sync(kFullWarp, partial, step);
  return partial;
}

template <typename T>
__device__ __forceinline__ T warp_reduce_max(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// The canonical sum of products, by a whole warp. `a` and `b` are functions of the column.
template <typename T, typename A, typename B>
__device__ T warp_dot(const A& a, const B& b, int64_t dim) {
  T sum = 0;
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) sum = fma(a(d), b(d), sum);
  return warp_reduce_sum(sum);
}

// |x| of a row, by a whole warp, with the same value and exponent as unit_row() on the CPU. For a row with a NaN or an
// infinity the value is NaN, so that the division makes NaNs.
template <typename T, typename Row>
__device__ RowNorm<T> warp_row_norm(const Row& x, int64_t dim) {
  const T square = warp_dot<T>(x, x, dim);
  if (is_safe_square(square)) return {sqrt(square), 0};
  T largest = 0;
  bool finite = true;
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    const T magnitude = fabs(x(d));
    finite = finite && magnitude <= std::numeric_limits<T>::max();
    largest = magnitude > largest ? magnitude : largest;
  }
  if (!__all_sync(kFullWarp, finite)) return {std::numeric_limits<T>::quiet_NaN(), 0};
  largest = warp_reduce_max(largest);
  if (largest == 0) return {};
  const int exponent = ilogb(largest);
  const auto scaled = [&](int64_t d) { return scalbn(x(d), -exponent); };
  return {sqrt(warp_dot<T>(scaled, scaled, dim)), exponent};
}

// An element of the unit row, given the row's norm; the element itself without `normalize`.
template <typename T>
__device__ __forceinline__ T element_of_unit(T x, const RowNorm<T>& norm, bool normalize) {
  return normalize ? unit_element(x, norm) : x;
}

// Writes norms [groups][per_group], a warp per row. With `counts`, rows beyond a group's count are skipped.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4)
    row_norms_kernel(RowView rows, int64_t groups, int64_t per_group, const int64_t* counts, int64_t dim,
                     RowNorm<T>* norms) {
  const int64_t row = own_warp<kRowsPerBlock>();
  if (row >= groups * per_group) return;
  const int64_t group = row / per_group, i = row % per_group;
  if (counts != nullptr && i >= counts[group]) return;
  const RowNorm<T> norm = warp_row_norm<T>(RowReader<T>(rows, i, group), dim);
  if (threadIdx.x % kWarp == 0) norms[row] = norm;
}

// Stores the gradient of a raw row, given that of its unit row, as row number `row` of `out`, by a whole warp.
// `gradient` and `unit` are functions of the column. A lane reads and writes the same columns.
template <typename T, typename Gradient, typename Unit>
__device__ __forceinline__ void store_raw_gradient(const Gradient& gradient, const Unit& unit, const RowNorm<T>& norm,
                                                   int64_t dim, void* out, Dtype dtype, int64_t row) {
  const T along = warp_dot<T>(gradient, unit, dim);
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp)
    store_element(out, dtype, row * dim + d, unit_row_gradient(gradient(d), along, unit(d), norm));
}

template <typename T>
__device__ __forceinline__ void store_zeros(int64_t dim, void* out, Dtype dtype, int64_t row) {
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) store_element(out, dtype, row * dim + d, T(0));
}

}  // namespace dgcl
