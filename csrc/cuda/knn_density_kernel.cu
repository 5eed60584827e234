// The last step of knn_density: the weighted sum over each query's sorted neighbours (csrc/math/density.h). A warp per
// query.
#include "../math/density.h"
#include "knn/merge.cuh"
#include "knn_density_kernel.h"

namespace dgcl {

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4) knn_density_kernel(KnnDensityArguments a) {
  const int64_t query = own_warp<kRowsPerBlock>();
  if (query >= a.search.num_queries) return;
  const int lane = threadIdx.x % kWarp;
  const int count = neighbour_count(a.search, query);
  const int outputs = a.per_scale ? a.num_scales : 1;
  for (int output = 0; output < outputs; ++output) {
    const int64_t* scales = a.scales + output;  // scales of this output
    const int num_scales = a.per_scale ? 1 : a.num_scales;
    T sum = count < 0 ? std::numeric_limits<T>::quiet_NaN() : T(0);
    T weight = 0;  // weight of rank 32 i + lane
    warp_merge<T>(a.search, query, count, [&](int rank, T score, int32_t) {
      if (rank % kWarp == 0) weight = scale_weight<T>(scales, num_scales, count, rank + lane + 1);
      const T rank_weight = __shfl_sync(kFullWarp, weight, rank % kWarp);
      if (rank_weight != 0) sum = fma(rank_weight, score, sum);
    });
    if (lane == 0) static_cast<T*>(a.density)[output * a.search.num_queries + query] = sum;
  }
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
int launch_knn_density(const KnnDensityArguments& a, void* stream) {
  const dim3 grid = blocks_for(a.search.num_queries, kRowsPerBlock);
  if (a.search.is_double)
    DGCL_LAUNCH(knn_density_kernel<double>, grid, dim3(kRowThreads), 0, stream, a);
  else
    DGCL_LAUNCH(knn_density_kernel<float>, grid, dim3(kRowThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
