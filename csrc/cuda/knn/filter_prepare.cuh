// What the tensor-core filter needs per class: a centre, a bias per bank row, and bounds of lengths.
#pragma once
#include "../../math/length_bound.h"
#include "items.cuh"

namespace dgcl {

constexpr int kMeanThreads = 256;
// Evenly spaced rows averaged for the centre; any centre is valid, but a close one gives tighter bounds.
constexpr int kMeanRows = 256;
constexpr int kLoadsTogether = 8;  // of a thread, before it uses the first

// A bank row as a function of the column. Its dtype is known when the kernel is compiled.
template <typename Stored>
struct StoredRow {
  const Stored* data;
  RowNorm<float> norm{1, 0};
  bool normalize;

  __device__ StoredRow(const KnnSearchArguments& a, int64_t i, int64_t group)
      : data(static_cast<const Stored*>(a.bank.data) + group * a.bank.group_stride + i * a.bank.row_stride),
        normalize(a.normalize_bank) {
    if (normalize) norm = static_cast<const RowNorm<float>*>(a.bank_norms)[group * a.bank_rows + i];
  }
  __device__ float unit(float x) const { return element_of_unit(x, norm, normalize); }
  __device__ float operator()(int64_t d) const { return unit(widen(data[d])); }
};

// An upper bound of |x|, given <x, x>. Also valid if the sum of squares leaves the normal range. By one warp.
template <typename Row>
__device__ float warp_length_bound(float square, const Row& x, int64_t dim) {
  if (is_safe_square(square)) return length_bound(square);
  float largest = 0;
  bool has_nan = false;
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    const float magnitude = fabs(x(d));
    has_nan = has_nan || magnitude != magnitude;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (__any_sync(kFullWarp, has_nan)) return std::numeric_limits<float>::quiet_NaN();
  return length_bound_of_largest(warp_reduce_max(largest), dim);
}

template <typename Row>
__device__ float warp_length_bound(const Row& x, int64_t dim) {
  return warp_length_bound(warp_dot<float>(x, x, dim), x, dim);
}

// Writes mean [classes][dim]: a block per 32 columns of a class, a warp per eighth of the rows.
template <typename Stored>
__global__ void __launch_bounds__(kMeanThreads, 4) knn_mean_kernel(KnnSearchArguments a) {
  constexpr int kWarps = kMeanThreads / kWarp;
  DGCL_SHARED(float, part, [kWarps][kWarp]);
  const int64_t slices = (a.dim + kWarp - 1) / kWarp;
  const int64_t group = blockIdx.x / slices, d = blockIdx.x % slices * kWarp + threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t rows = class_rows(a, group), taken = rows < kMeanRows ? rows : kMeanRows;
  float sum = 0;
  for (int64_t first = warp; first < taken; first += kLoadsTogether * kWarps) {
    float x[kLoadsTogether];
#pragma unroll
    for (int n = 0; n < kLoadsTogether; ++n) {
      const int64_t i = first + n * kWarps;
      x[n] = i < taken && d < a.dim ? StoredRow<Stored>(a, i * rows / taken, group)(d) : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kLoadsTogether; ++n)
      if (fabs(x[n]) <= std::numeric_limits<float>::max()) sum += x[n];
  }
  part[warp][threadIdx.x % kWarp] = sum;
  __syncthreads();
  if (warp > 0 || d >= a.dim) return;
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += part[w][threadIdx.x];
  sum = taken > 0 ? sum / static_cast<float>(taken) : 0.0f;
  a.mean[group * a.dim + d] = fabs(sum) <= std::numeric_limits<float>::max() ? sum : 0.0f;
}

// Bounds are non-negative, so their bit patterns sort like the numbers. Most rows raise nothing, and a plain read is
// cheaper than an atomic. A stale read only costs one extra atomic.
__device__ __forceinline__ void raise_bound(float* bound, float value) {
  if (value <= load_relaxed(bound)) return;
  atomicMax(reinterpret_cast<unsigned*>(bound), __float_as_uint(value));
}

// Writes bias and lengths, a warp per row, in one pass over the row. A row with a NaN has no bounds. It passes no
// threshold, and it cannot be a neighbour. The sums are canonical: a lane takes every 32nd column, so a warp's loads are
// contiguous, and wider loads would add in another order.
template <typename Stored>
__global__ void __launch_bounds__(kRowThreads, 4) knn_bank_lengths_kernel(KnnSearchArguments a) {
  const int64_t at = own_warp<kRowsPerBlock>();
  if (at >= a.num_classes * a.bank_rows) return;
  const int64_t group = at / a.bank_rows, i = at % a.bank_rows;
  if (i >= class_rows(a, group)) return;
  const StoredRow<Stored> row(a, i, group);
  const float* mean = a.mean + group * a.dim;
  const auto centre = [&](int64_t d) { return mean[d]; };
  const auto residual = [&](int64_t d) { return row(d) - mean[d]; };
  float row_row = 0, residual_residual = 0, mean_residual = 0;  // inner products
  for (int64_t first = threadIdx.x % kWarp; first < a.dim; first += kLoadsTogether * kWarp) {
    float x[kLoadsTogether], m[kLoadsTogether];
#pragma unroll
    for (int n = 0; n < kLoadsTogether; ++n) {
      const int64_t d = first + n * kWarp;
      x[n] = d < a.dim ? widen(row.data[d]) : 0.0f;
      m[n] = d < a.dim ? mean[d] : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kLoadsTogether; ++n) {
      const float element = row.unit(x[n]), difference = element - m[n];
      row_row = fma(element, element, row_row);
      residual_residual = fma(difference, difference, residual_residual);
      mean_residual = fma(m[n], difference, mean_residual);
    }
  }
  residual_residual = warp_reduce_sum(residual_residual);
  const float bias = a.l2 ? -0.5f * residual_residual : warp_reduce_sum(mean_residual);
  const float length = warp_length_bound(warp_reduce_sum(row_row), row, a.dim);
  const float residual_length = warp_length_bound(residual_residual, residual, a.dim);
  BankLengths& lengths = a.lengths[group];
  if (i == 0) {
    const float mean_length = warp_length_bound(centre, a.dim);
    if (threadIdx.x % kWarp == 0) lengths.mean = mean_length;
  }
  if (threadIdx.x % kWarp != 0) return;
  a.bias[at] = bias;
  if (length != length) return;
  // The filter cannot handle a row with an exponent in its norm (below 2^-45 or above 2^64).
  const bool extreme = a.normalize_bank && row.norm.exponent != 0;
  raise_bound(&lengths.row, extreme ? std::numeric_limits<float>::infinity() : length);
  raise_bound(&lengths.residual, residual_length);
}

}  // namespace dgcl
