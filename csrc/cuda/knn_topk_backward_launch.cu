#include "knn_topk_backward_kernel.cuh"

namespace dgcl {
namespace {

const dim3 kThreads(kGradientThreads);

dim3 blocks(int64_t items, int64_t per_block) {
  return dim3(static_cast<unsigned>((items + per_block - 1) / per_block));
}

dim3 row_blocks(int64_t rows) { return blocks(rows < kMostGradientWarps ? rows : kMostGradientWarps, kGradientWarps); }

template <typename T>
void launch_keys(const KnnTopkBackwardArguments& a, void* stream) {
  DGCL_LAUNCH(knn_pair_keys_kernel<T>, blocks(a.num_queries * a.k, kGradientThreads), kThreads, 0, stream, a);
}

template <typename T>
void launch(const KnnTopkBackwardArguments& a, void* stream) {
  static_assert(sizeof(RowNorm<T>) == gradient_norm_bytes(sizeof(T) == sizeof(double)));
  const int64_t bank_rows = a.num_classes * a.bank_rows;
  if (a.normalise_queries && a.num_queries > 0)
    DGCL_LAUNCH(knn_gradient_norms_kernel<T>, blocks(a.num_queries, kGradientWarps), kThreads, 0, stream, a.queries,
                int64_t(1), a.num_queries, a.dim, static_cast<RowNorm<T>*>(a.query_norms));
  if (a.normalise_bank && bank_rows > 0)
    DGCL_LAUNCH(knn_gradient_norms_kernel<T>, blocks(bank_rows, kGradientWarps), kThreads, 0, stream, a.bank,
                a.num_classes, a.bank_rows, a.dim, static_cast<RowNorm<T>*>(a.bank_norms));
  if (a.num_queries > 0) DGCL_LAUNCH(knn_query_gradient_kernel<T>, row_blocks(a.num_queries), kThreads, 0, stream, a);
  if (bank_rows > 0) DGCL_LAUNCH(knn_bank_gradient_kernel<T>, row_blocks(bank_rows), kThreads, 0, stream, a);
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
