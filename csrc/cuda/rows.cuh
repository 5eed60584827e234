// Reading and writing rows of any dtype, and the canonical sums of a warp.
#pragma once
#include <limits>

#include "../math/unit_row.h"
#include "compat.cuh"
#include "rows.h"

namespace dgcl {

constexpr int kWarp = 32;
constexpr int kRowThreads = 256, kRowsABlock = kRowThreads / kWarp;  // of kernels that give a warp to each row
constexpr unsigned kFullWarp = 0xffffffffu;

// Element i, widened to T; exact, but for float64 read as float, which no op asks for.
template <typename T>
__device__ __forceinline__ T load_element(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::float16:
      return static_cast<T>(__half2float(static_cast<const __half*>(data)[i]));
    case Dtype::bfloat16:
      return static_cast<T>(__bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]));
    case Dtype::float32:
      return static_cast<T>(static_cast<const float*>(data)[i]);
    default:
      return static_cast<T>(static_cast<const double*>(data)[i]);
  }
}

// The reverse, rounding to nearest even. float64 goes to 16 bits by way of float32, as on the CPU.
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

  __device__ RowReader(const Rows& rows, int64_t i, int64_t group)
      : data(rows.data), dtype(rows.dtype), begin(group * rows.group_stride + i * rows.row_stride) {}
  __device__ T operator()(int64_t d) const { return load_element<T>(data, dtype, begin + d); }
};

// The canonical tree (csrc/math/canonical.h): every lane returns the sum of the 32 partial sums.
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

// |x| of a row, by a whole warp; the same value and exponent as unit_row() on the CPU. A row with a NaN or an infinity
// gets value NaN here, so that dividing by it makes NaNs.
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

// One element of the unit row of a row with this norm.
template <typename T>
__device__ __forceinline__ T unit_element(T x, const RowNorm<T>& norm) {
  if (norm.value == 0) return 0;
  return (norm.exponent ? scalbn(x, -norm.exponent) : x) / norm.value;
}

}  // namespace dgcl
