// Sorts the entries of a query: higher scores first, ties to the lower index.
#pragma once
#include <algorithm>
#include <bit>

#include "../../math/score.h"
#include "problem.h"

namespace dgcl {

// Writes entry i to the place that the number of higher scores gives, without branches on the scores. Returns false, and
// leaves `out` incomplete, if there are too many entries or if two have the same score.
template <typename T>
bool place_by_rank(const Primitives<T>& prims, const T* score, const int32_t* index, int64_t n, Neighbour<T>* out) {
  if (n > 64) return false;  // bits of a mask
  uint64_t taken = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int place = std::popcount(prims.passing(score, n, score[i])) - 1;
    out[place] = {score[i], index[i]};
    taken |= uint64_t(1) << place;
  }
  return std::popcount(taken) == n;
}

// Writes the best `count` of n entries, in order. No score is NaN. Scores are readable up to the next multiple of 16,
// and `out` has room for n.
template <typename T>
void sort_best(const Primitives<T>& prims, const T* score, const int32_t* index, int64_t n, int64_t count,
               Neighbour<T>* out) {
  if (place_by_rank(prims, score, index, n, out)) return;
  for (int64_t i = 0; i < n; ++i) out[i] = {score[i], index[i]};
  std::partial_sort(out, out + count, out + n,
                    [](const auto& a, const auto& b) { return comes_before(a.score, a.index, b.score, b.index); });
}

}  // namespace dgcl
