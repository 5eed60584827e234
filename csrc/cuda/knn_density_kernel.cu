// knn_density's last step: the weighted sum over each query's sorted neighbours (csrc/math/density.h). A warp a query.
#pragma once
#include "../math/density.h"
#include "knn_density_launch.h"
#include "knn_merge.cuh"

namespace dgcl {

template <typename T>
__global__ void __launch_bounds__(kRowThreads, 4) knn_density_kernel(KnnDensityArguments a) {
  const int64_t query = own_warp<kRowsPerBlock>();
  if (query >= a.search.num_queries) return;
  const int lane = threadIdx.x % kWarp;
  const int found = warp_found(a.search, query);
  const int outputs = a.per_scale ? a.num_scales : 1;
  for (int output = 0; output < outputs; ++output) {
    const int64_t* scales = a.scales + output;  // of this output
    const int num_scales = a.per_scale ? 1 : a.num_scales;
    T sum = found < 0 ? std::numeric_limits<T>::quiet_NaN() : T(0);
    T weight = 0;  // of rank 32 i + lane
    warp_merge<T>(a.search, query, found, [&](int rank, T score, int32_t) {
      if (rank % kWarp == 0) weight = scale_weight<T>(scales, num_scales, found, rank + lane + 1);
      const T of_rank = __shfl_sync(kFullWarp, weight, rank % kWarp);
      if (of_rank != 0) sum = fma(of_rank, score, sum);
    });
    if (lane == 0) static_cast<T*>(a.density)[output * a.search.num_queries + query] = sum;
  }
}

}  // namespace dgcl
