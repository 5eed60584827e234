#include "knn_topk_backward_kernel.cuh"

namespace dgcl {
namespace {

const dim3 kThreads(kGradientThreads);

// Of warps that take rows by turns.
dim3 gradient_blocks(int64_t rows) {
  return blocks_for(rows < kMostGradientWarps ? rows : kMostGradientWarps, kGradientWarps);
}

template <typename T>
void launch_keys(const KnnTopkBackwardArguments& a, void* stream) {
  DGCL_LAUNCH(knn_pair_keys_kernel<T>, blocks_for(a.num_queries * a.k, kGradientThreads), kThreads, 0, stream, a);
}

template <typename T>
void launch_norms(const Rows& rows, int64_t groups, int64_t per_group, int64_t dim, void* norms, void* stream) {
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

}  // namespace dgcl
