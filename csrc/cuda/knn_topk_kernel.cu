// The last step of knn_topk: each query's list, padded with -inf and -1. A warp per query.
#include "knn/merge.cuh"
#include "knn_topk_kernel.h"

namespace dgcl {

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4) knn_topk_kernel(KnnTopkArguments a) {
  const int64_t query = own_warp<kRowsPerBlock>();
  if (query >= a.search.num_queries) return;
  const int lane = threadIdx.x % kWarp;
  T* values = static_cast<T*>(a.values) + query * a.k;
  int64_t* indices = a.indices + query * a.k;
  const int count = neighbour_count(a.search, query);
  for (int64_t rank = (count < 0 ? 0 : count) + lane; rank < a.k; rank += kWarp) {
    values[rank] = -std::numeric_limits<T>::infinity();
    indices[rank] = -1;
  }
  warp_merge<T>(a.search, query, count, [&](int rank, T score, int32_t index) {
    if (rank % kWarp != lane) return;
    values[rank] = score;
    indices[rank] = index;
  });
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
int launch_knn_topk(const KnnTopkArguments& a, void* stream) {
  const dim3 grid = blocks_for(a.search.num_queries, kRowsPerBlock);
  if (a.search.is_double)
    DGCL_LAUNCH(knn_topk_kernel<double>, grid, dim3(kRowThreads), 0, stream, a);
  else
    DGCL_LAUNCH(knn_topk_kernel<float>, grid, dim3(kRowThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
