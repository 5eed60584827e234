// Gradients of the k best scores, with the neighbours held fixed (math/score_gradient.h). Each row, query or bank row,
// has a warp that sums the row's pairs in the order of the queries. So there are no atomic additions, and the bits are
// the same every time. A stable sort of all pairs by bank row gives the pairs of each bank row.
#include "../math/score_gradient.h"
#include "knn_topk_backward_kernel.h"
#include "rows.cuh"

namespace dgcl {

constexpr int kGradientThreads = 128;
constexpr int kGradientWarps = kGradientThreads / kWarp;
// Per multiprocessor, which leaves 128 registers per thread, or 168 in double.
template <typename T>
constexpr int kGradientBlocks = sizeof(T) == sizeof(double) ? 3 : 4;
constexpr int kColumnsPerLane = 4;  // per sum at a time
constexpr int kPairsAtOnce = 2;     // pairs that load their rows together

// -1 for a query without a class, else in [0, C), whatever the offsets are.
__device__ inline int64_t gradient_class(const KnnTopkBackwardArguments& a, int64_t query) {
  if (a.offsets == nullptr) return 0;
  if (query < a.offsets[0] || query >= a.offsets[a.num_classes]) return -1;
  return partition_point(a.num_classes - 1, [&](int64_t c) { return a.offsets[c + 1] <= query; });
}

// Whether the pair adds to a gradient. Its class is checked elsewhere.
template <typename T>
__device__ __forceinline__ bool pair_is_used(const KnnTopkBackwardArguments& a, int64_t pair) {
  const int64_t index = a.indices[pair];
  return index < a.bank_rows && pair_has_gradient(a.l2, index, static_cast<const T*>(a.dL_dvalues)[pair],
                                                  static_cast<const T*>(a.values)[pair]);
}

// A thread per pair.
template <typename T>
__global__ void __launch_bounds__(kGradientThreads) knn_pair_keys_kernel(KnnTopkBackwardArguments a) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pair >= a.num_queries * a.k) return;
  int64_t key = a.num_classes * a.bank_rows;
  if (pair_is_used<T>(a, pair)) {
    const int64_t group = gradient_class(a, pair / a.k);
    if (group >= 0) key = group * a.bank_rows + a.indices[pair];
  }
  a.keys[pair] = key;
}

// One pair, as one of its rows sees it: what the other row adds.
template <typename T>
struct PairTerm {
  bool used = false;
  T factor = 0;
  int64_t begin = 0;  // start of the other row, in elements
  RowNorm<T> norm = {1, 0};
};

template <typename T, typename Stored>
__device__ __forceinline__ void load_columns_of(const void* data, int64_t begin, int64_t first, int64_t dim,
                                                T (&x)[kColumnsPerLane]) {
  const Stored* row = static_cast<const Stored*>(data) + begin;
#pragma unroll
  for (int i = 0; i < kColumnsPerLane; ++i)
    x[i] = first + i * kWarp < dim ? static_cast<T>(widen(row[first + i * kWarp])) : T(0);
}

// x = columns first, first + 32, ... of a row, and 0 beyond its end. One branch serves all loads; a branch between two
// loads would make the second wait for the first.
template <typename T>
__device__ __forceinline__ void load_columns(const RowView& rows, int64_t begin, int64_t first, int64_t dim,
                                             T (&x)[kColumnsPerLane]) {
  switch (rows.dtype) {
    case Dtype::float16:
      return load_columns_of<T, __half>(rows.data, begin, first, dim, x);
    case Dtype::bfloat16:
      return load_columns_of<T, __nv_bfloat16>(rows.data, begin, first, dim, x);
    case Dtype::float32:
      return load_columns_of<T, float>(rows.data, begin, first, dim, x);
    default:
      return load_columns_of<T, double>(rows.data, begin, first, dim, x);
  }
}

// sum [dim] = the sum of the terms term_at(n), n = 0 ... count - 1, in this order. The other rows are those of
// `source`. Lane l writes columns l, l + 32, ... Called by a whole warp.
template <typename T, typename TermAt>
__device__ __forceinline__ void sum_terms(const RowReader<T>& own, const RowView& source, bool l2, bool normalize,
                                          int64_t dim, int64_t count, const TermAt& term_at, T* sum) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t first = lane; first - lane < dim; first += kWarp * kColumnsPerLane) {
    T total[kColumnsPerLane], mine[kColumnsPerLane];
#pragma unroll
    for (int i = 0; i < kColumnsPerLane; ++i) {
      const int64_t d = first + i * kWarp;
      total[i] = 0;
      mine[i] = l2 && d < dim ? own(d) : T(0);
    }
    for (int64_t start = 0; start < count; start += kWarp) {
      const PairTerm<T> term = start + lane < count ? term_at(start + lane) : PairTerm<T>{};
      unsigned left = __ballot_sync(kFullWarp, term.used);
      while (left) {
        T factor[kPairsAtOnce], x[kPairsAtOnce][kColumnsPerLane];
        RowNorm<T> norm[kPairsAtOnce];
        bool used[kPairsAtOnce];
#pragma unroll
        for (int p = 0; p < kPairsAtOnce; ++p) {
          used[p] = left != 0;
          const int from = used[p] ? __ffs(left) - 1 : 0;
          left &= left - 1;
          factor[p] = __shfl_sync(kFullWarp, term.factor, from);
          norm[p].value = __shfl_sync(kFullWarp, term.norm.value, from);
          norm[p].exponent = __shfl_sync(kFullWarp, term.norm.exponent, from);
          const int64_t begin = __shfl_sync(kFullWarp, term.begin, from);
          load_columns(source, used[p] ? begin : 0, first, dim, x[p]);
        }
#pragma unroll
        for (int p = 0; p < kPairsAtOnce; ++p)
#pragma unroll
          for (int i = 0; i < kColumnsPerLane; ++i) {
            const T direction = score_direction(l2, mine[i], element_of_unit(x[p][i], norm[p], normalize));
            if (used[p]) total[i] = fma(factor[p], direction, total[i]);
          }
      }
    }
#pragma unroll
    for (int i = 0; i < kColumnsPerLane; ++i)
      if (first + i * kWarp < dim) sum[first + i * kWarp] = total[i];
  }
}

// Stores the gradient of the raw row, given the sum.
template <typename T>
__device__ __forceinline__ void store_gradient(const RowReader<T>& own, const RowNorm<T>& norm, bool normalize,
                                               int64_t dim, const T* sum, void* out, Dtype dtype, int64_t row) {
  if (normalize) {
    const auto unit = [&](int64_t d) { return unit_element(own(d), norm); };
    store_raw_gradient([&](int64_t d) { return sum[d]; }, unit, norm, dim, out, dtype, row);
    return;
  }
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) store_element(out, dtype, row * dim + d, sum[d]);
}

template <typename T>
__device__ __forceinline__ T factor_of_pair(const KnnTopkBackwardArguments& a, int64_t pair) {
  return pair_factor(a.l2, static_cast<const T*>(a.dL_dvalues)[pair], static_cast<const T*>(a.values)[pair]);
}

template <typename T>
__global__ void __launch_bounds__(kGradientThreads, kGradientBlocks<T>)
    knn_query_gradient_kernel(KnnTopkBackwardArguments a) {
  const int64_t warp = own_warp<kGradientWarps>();
  T* sum = static_cast<T*>(a.sums) + warp * a.dim;
  const RowNorm<T>* bank_norms = static_cast<const RowNorm<T>*>(a.bank_norms);
  for (int64_t query = warp; query < a.num_queries; query += static_cast<int64_t>(gridDim.x) * kGradientWarps) {
    const int64_t group = gradient_class(a, query);
    if (group < 0) {
      store_zeros<T>(a.dim, a.dL_dqueries, a.queries.dtype, query);
      continue;
    }
    const RowReader<T> own(a.queries, query, 0);
    const auto term_at = [&](int64_t n) {
      PairTerm<T> term;
      const int64_t pair = query * a.k + n;
      term.used = pair_is_used<T>(a, pair);
      if (!term.used) return term;
      term.factor = factor_of_pair<T>(a, pair);
      term.begin = group * a.bank.group_stride + a.indices[pair] * a.bank.row_stride;
      if (a.normalize_bank) term.norm = bank_norms[group * a.bank_rows + a.indices[pair]];
      return term;
    };
    sum_terms(own, a.bank, a.l2, a.normalize_bank, a.dim, a.k, term_at, sum);
    const RowNorm<T> norm =
        a.normalize_queries ? static_cast<const RowNorm<T>*>(a.query_norms)[query] : RowNorm<T>{1, 0};
    store_gradient(own, norm, a.normalize_queries, a.dim, sum, a.dL_dqueries, a.queries.dtype, query);
  }
}

// The first sorted key that is not below `key`.
__device__ inline int64_t first_pair_of(const KnnTopkBackwardArguments& a, int64_t key) {
  return partition_point(a.num_queries * a.k, [&](int64_t pair) { return a.sorted_keys[pair] < key; });
}

template <typename T>
__global__ void __launch_bounds__(kGradientThreads, kGradientBlocks<T>)
    knn_bank_gradient_kernel(KnnTopkBackwardArguments a) {
  const int64_t warp = own_warp<kGradientWarps>();
  T* sum = static_cast<T*>(a.sums) + warp * a.dim;
  const RowNorm<T>* query_norms = static_cast<const RowNorm<T>*>(a.query_norms);
  const int64_t rows = a.num_classes * a.bank_rows;
  for (int64_t row = warp; row < rows; row += static_cast<int64_t>(gridDim.x) * kGradientWarps) {
    const int64_t begin = first_pair_of(a, row), end = first_pair_of(a, row + 1);
    if (begin == end) {
      store_zeros<T>(a.dim, a.dL_dbank, a.bank.dtype, row);
      continue;
    }
    const RowReader<T> own(a.bank, row % a.bank_rows, row / a.bank_rows);
    const auto term_at = [&](int64_t n) {
      PairTerm<T> term;
      const int64_t pair = a.pairs[begin + n], query = pair / a.k;
      term.used = true;
      term.factor = factor_of_pair<T>(a, pair);
      term.begin = query * a.queries.row_stride;
      if (a.normalize_queries) term.norm = query_norms[query];
      return term;
    };
    sum_terms(own, a.queries, a.l2, a.normalize_queries, a.dim, end - begin, term_at, sum);
    const RowNorm<T> norm = a.normalize_bank ? static_cast<const RowNorm<T>*>(a.bank_norms)[row] : RowNorm<T>{1, 0};
    store_gradient(own, norm, a.normalize_bank, a.dim, sum, a.dL_dbank, a.bank.dtype, row);
  }
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
namespace {

const dim3 kThreads(kGradientThreads);

// Blocks of warps that take rows in turns.
dim3 gradient_blocks(int64_t rows) {
  return blocks_for(rows < kMostGradientWarps ? rows : kMostGradientWarps, kGradientWarps);
}

template <typename T>
void launch_keys(const KnnTopkBackwardArguments& a, void* stream) {
  DGCL_LAUNCH(knn_pair_keys_kernel<T>, blocks_for(a.num_queries * a.k, kGradientThreads), kThreads, 0, stream, a);
}

template <typename T>
void launch_norms(const RowView& rows, int64_t groups, int64_t per_group, int64_t dim, void* norms, void* stream) {
  static_assert(sizeof(RowNorm<T>) == row_norm_bytes(sizeof(T) == sizeof(double)));
  if (groups * per_group > 0)
    DGCL_LAUNCH(row_norms_kernel<T>, blocks_for(groups * per_group, kRowsPerBlock), dim3(kRowThreads), 0, stream, rows,
                groups, per_group, static_cast<const int64_t*>(nullptr), dim, static_cast<RowNorm<T>*>(norms));
}

template <typename T>
void launch(const KnnTopkBackwardArguments& a, void* stream) {
  const int64_t bank_rows = a.num_classes * a.bank_rows;
  if (a.normalize_queries) launch_norms<T>(a.queries, 1, a.num_queries, a.dim, a.query_norms, stream);
  if (a.normalize_bank) launch_norms<T>(a.bank, a.num_classes, a.bank_rows, a.dim, a.bank_norms, stream);
  if (a.num_queries > 0)
    DGCL_LAUNCH(knn_query_gradient_kernel<T>, gradient_blocks(a.num_queries), kThreads, 0, stream, a);
  if (bank_rows > 0) DGCL_LAUNCH(knn_bank_gradient_kernel<T>, gradient_blocks(bank_rows), kThreads, 0, stream, a);
}

}  // namespace

int launch_knn_pair_keys(const KnnTopkBackwardArguments& a, void* stream) {
  if (a.num_queries * a.k == 0) return 0;
  if (a.is_double)
    launch_keys<double>(a, stream);
  else
    launch_keys<float>(a, stream);
  return static_cast<int>(cudaGetLastError());
}

int launch_knn_topk_backward(const KnnTopkBackwardArguments& a, void* stream) {
  if (a.is_double)
    launch<double>(a, stream);
  else
    launch<float>(a, stream);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
