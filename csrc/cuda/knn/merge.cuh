// Merges a query's sorted lists from all parts of the bank: exact, in a fixed order, by one warp.
#pragma once
#include <climits>

#include "candidates.cuh"

namespace dgcl {

static_assert(kMostSplits <= kWarp);  // a lane per part

// The number of neighbours of a query, at most k. -1 for a query with a NaN.
__device__ inline int neighbour_count(const KnnSearchArguments& a, int64_t query) {
  const int lane = threadIdx.x % kWarp;
  const int length = lane < a.plan.splits ? a.list_length[lane * a.num_queries + query] : 0;
  if (__any_sync(kFullWarp, length < 0)) return -1;
  const int sum = warp_reduce_sum(length < a.k ? length : a.k);
  return sum < a.k ? sum : a.k;
}

// Calls take(rank, score, index) on all lanes, with the same values, for ranks 0 to count - 1.
template <typename T, typename Take>
__device__ void warp_merge(const KnnSearchArguments& a, int64_t query, int count, const Take& take) {
  const int lane = threadIdx.x % kWarp;
  const T* scores = static_cast<const T*>(a.list_score);
  if (a.plan.splits == 1) {
    for (int rank = 0; rank < count; ++rank) take(rank, scores[query * a.k + rank], a.list_index[query * a.k + rank]);
    return;
  }
  const int64_t list = lane * a.num_queries + query;
  const int length = lane < a.plan.splits ? a.list_length[list] : 0;
  int head = 0;  // position in this lane's list
  for (int rank = 0; rank < count; ++rank) {
    const T own_score = head < length ? scores[list * a.k + head] : -std::numeric_limits<T>::infinity();
    const int32_t own_index = head < length ? a.list_index[list * a.k + head] : INT_MAX;
    T score = own_score;
    int32_t index = own_index;
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const T other_score = __shfl_xor_sync(kFullWarp, score, step);
      const int32_t other_index = __shfl_xor_sync(kFullWarp, index, step);
      if (comes_before(other_score, other_index, score, index)) {
        score = other_score;
        index = other_index;
      }
    }
    if (index == own_index) ++head;  // parts share no row
    take(rank, score, index);
  }
}

}  // namespace dgcl
