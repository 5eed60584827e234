#include "knn_topk_kernel.cuh"

namespace dgcl {

int launch_knn_topk(const KnnTopkArguments& a, bool is_double, void* stream) {
  const dim3 grid(static_cast<unsigned>((a.search.num_queries + kRowsABlock - 1) / kRowsABlock));
  if (is_double)
    DGCL_LAUNCH(knn_topk_kernel<double>, grid, dim3(kRowThreads), 0, stream, a);
  else
    DGCL_LAUNCH(knn_topk_kernel<float>, grid, dim3(kRowThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace dgcl
