#include "knn_density_kernel.cuh"

namespace dgcl {

int launch_knn_density(const KnnDensityArguments& a, void* stream) {
  const dim3 grid = blocks_for(a.search.num_queries, kRowsPerBlock);
  if (a.search.is_double)
    DGCL_LAUNCH(knn_density_kernel<double>, grid, dim3(kRowThreads), 0, stream, a);
  else
    DGCL_LAUNCH(knn_density_kernel<float>, grid, dim3(kRowThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace dgcl
