// The candidates of a query: bank rows that may be among its k nearest. Any thread of the block appends to the list,
// and one warp cuts it down when it is full. What is kept depends only on scores and indices, not on the order of
// arrival.
#pragma once
#include <climits>

#include "../../math/score.h"
#include "../rows.cuh"
#include "search.h"

namespace dgcl {

template <typename T>
struct CandidateList {
  T* score;
  int32_t* index;
};

// Sorts the first n entries in descending order of score; ties go to the lower index. A bitonic network, by one warp.
// Overwrites entries up to the next power of two.
template <typename T>
__device__ void warp_sort(const CandidateList<T>& list, int n) {
  const int lane = threadIdx.x % kWarp;
  int size = 1;
  while (size < n) size *= 2;
  for (int i = n + lane; i < size; i += kWarp) {
    list.score[i] = -std::numeric_limits<T>::infinity();
    list.index[i] = INT_MAX;
  }
  __syncwarp();
  for (int run = 2; run <= size; run *= 2) {
    for (int stride = run / 2; stride > 0; stride /= 2) {
      for (int pair = lane; pair < size / 2; pair += kWarp) {
        const int i = 2 * pair - (pair & (stride - 1)), j = i + stride;
        const T score_i = list.score[i], score_j = list.score[j];
        const int32_t index_i = list.index[i], index_j = list.index[j];
        const bool swapped = comes_before(score_j, index_j, score_i, index_i);
        if (swapped == ((i & run) == 0)) {
          list.score[i] = score_j;
          list.score[j] = score_i;
          list.index[i] = index_j;
          list.index[j] = index_i;
        }
      }
      __syncwarp();
    }
  }
}

// A value that at least k of the n >= k scores reach, close to the largest such value. One warp halves the range of
// scores.
template <typename T>
__device__ T warp_kth_bound(const T* score, int n, int k) {
  constexpr int kHalvings = 12;
  const int lane = threadIdx.x % kWarp;
  T low = std::numeric_limits<T>::infinity(), high = -low;
  for (int i = lane; i < n; i += kWarp) {
    low = score[i] < low ? score[i] : low;
    high = score[i] > high ? score[i] : high;
  }
  low = -warp_reduce_max(-low);
  high = warp_reduce_max(high);
  for (int halving = 0; halving < kHalvings; ++halving) {
    const T middle = low + (high - low) / 2;
    int reached = 0;
    for (int i = lane; i < n; i += kWarp) reached += score[i] >= middle;
    if (warp_reduce_sum(reached) >= k)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Keeps the entries with score >= cut, in their order, and returns their number. By one warp.
template <typename T>
__device__ int warp_keep(const CandidateList<T>& list, int n, T cut) {
  const int lane = threadIdx.x % kWarp;
  int kept = 0;
  for (int start = 0; start < n; start += kWarp) {
    const int i = start + lane;
    const T score = i < n ? list.score[i] : T(0);
    const int32_t index = i < n ? list.index[i] : 0;
    const bool keep = i < n && score >= cut;
    const unsigned keepers = __ballot_sync(kFullWarp, keep);
    __syncwarp();  // all reads come before any write
    if (keep) {
      const int at = kept + __popc(keepers & ((1u << lane) - 1));
      list.score[at] = score;
      list.index[at] = index;
    }
    kept += __popc(keepers);
    __syncwarp();
  }
  return kept;
}

// Writes the first entries of the sorted list to the query's result.
template <typename T>
__device__ void warp_write_list(const KnnSearchArguments& a, int32_t split, int64_t query, const CandidateList<T>& list,
                                int length) {
  const int lane = threadIdx.x % kWarp;
  const int64_t at = split * a.num_queries + query;
  for (int r = lane; r < length; r += kWarp) {
    static_cast<T*>(a.list_score)[at * a.k + r] = list.score[r];
    a.list_index[at * a.k + r] = list.index[r];
  }
  if (lane == 0) a.list_length[at] = length;
}

}  // namespace dgcl
