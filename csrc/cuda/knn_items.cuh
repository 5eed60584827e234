// Which queries and which bank rows a block works on, without the host knowing the class sizes.
#pragma once
#include "knn_search_launch.h"
#include "rows.cuh"

namespace dgcl {

// Device-side numbers may be anything: clamped, so that bad ones cannot reach outside the tensors.
__device__ __forceinline__ int64_t clamped(int64_t value, int64_t largest) {
  return value < 0 ? 0 : value > largest ? largest : value;
}

__device__ __forceinline__ int64_t class_begin(const KnnSearchArguments& a, int64_t c) {
  if (!a.offsets) return c == 0 ? 0 : a.num_queries;
  return clamped(a.offsets[c], a.num_queries);
}

__device__ __forceinline__ int64_t class_rows(const KnnSearchArguments& a, int64_t c) {
  return a.counts ? clamped(a.counts[c], a.bank_rows) : a.bank_rows;
}

struct KnnItem {
  int64_t group;               // class
  int64_t first_query;         // queries [first_query, first_query + queries)
  int64_t first_place;         // place of the first query within its class
  int queries;                 // 0: nothing to do
  int32_t begin_row, end_row;  // bank rows of this part
  int32_t split;
};

// Class c has room for its tiles from number begin(c) / kItemQueries + c on: at most one more than it needs, so that
// the tiles of all classes are counted without a prefix sum. Surplus tiles are empty.
__device__ inline KnnItem knn_item(const KnnSearchArguments& a, int64_t item) {
  const int64_t tile = item / a.splits;
  int64_t low = 0, high = a.num_classes - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (class_begin(a, middle) / kItemQueries + middle <= tile)
      low = middle;
    else
      high = middle - 1;
  }
  KnnItem it;
  it.group = low;
  it.split = static_cast<int32_t>(item % a.splits);
  const int64_t begin = class_begin(a, low), rows = class_rows(a, low);
  int64_t end = class_begin(a, low + 1);
  if (a.exclude_self && end > begin + rows) end = begin + rows;  // further queries are no bank rows
  it.first_place = (tile - (begin / kItemQueries + low)) * kItemQueries;
  it.first_query = begin + it.first_place;
  const int64_t left = rows == 0 || it.first_place < 0 ? 0 : end - it.first_query;
  it.queries = static_cast<int>(clamped(left, kItemQueries));
  const int64_t split_begin = it.split * a.split_rows, split_end = split_begin + a.split_rows;
  it.begin_row = static_cast<int32_t>(split_begin < rows ? split_begin : rows);
  it.end_row = static_cast<int32_t>(split_end < rows ? split_end : rows);
  return it;
}

// Elements of a query as the score uses them: widened, and of unit length for cosine.
template <typename T>
struct QueryReader {
  RowReader<T> raw;
  RowNorm<T> norm;
  bool normalise;

  __device__ QueryReader(const KnnSearchArguments& a, int64_t query, const RowNorm<T>& n)
      : raw(a.queries, query, 0), norm(n), normalise(a.normalise_queries) {}
  __device__ T operator()(int64_t d) const { return normalise ? unit_element(raw(d), norm) : raw(d); }
};

template <typename T>
__device__ RowNorm<T> query_norm(const KnnSearchArguments& a, int64_t query) {
  if (!a.normalise_queries) return {1, 0};
  return warp_row_norm<T>(RowReader<T>(a.queries, query, 0), a.dim);
}

// Elements of bank row i of a class, likewise.
template <typename T>
struct BankReader {
  RowReader<T> raw;
  RowNorm<T> norm;
  bool normalise;

  __device__ BankReader(const KnnSearchArguments& a, int64_t i, int64_t group)
      : raw(a.bank, i, group), norm{1, 0}, normalise(a.normalise_bank) {
    if (!normalise) return;
    const int64_t at = group * a.bank_rows + i;
    norm = {static_cast<const T*>(a.norm)[at], a.norm_exponent[at]};
  }
  __device__ T operator()(int64_t d) const { return normalise ? unit_element(raw(d), norm) : raw(d); }
};

// Lengths of bank rows, a warp a row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4) knn_bank_norms_kernel(KnnSearchArguments a) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsABlock + threadIdx.x / kWarp;
  if (row >= a.num_classes * a.bank_rows) return;
  const int64_t group = row / a.bank_rows, i = row % a.bank_rows;
  if (i >= class_rows(a, group)) return;
  const RowNorm<T> norm = warp_row_norm<T>(RowReader<T>(a.bank, i, group), a.dim);
  if (threadIdx.x % kWarp != 0) return;
  static_cast<T*>(a.norm)[row] = norm.value;
  a.norm_exponent[row] = norm.exponent;
}

}  // namespace dgcl
