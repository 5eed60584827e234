// Exact k nearest neighbours of every query, class by class, without a similarity matrix.
//
// A work item is a block of queries of one class, searched by one thread (block.h). A filter scores the class's rows
// tile by tile, in 8-bit integers or floats. The rows that its error bound leaves get canonical scores. All rows get
// canonical scores, in tiles, if a class has few queries or barely more rows than k, or if too many rows lie within the
// filter's error of a query's neighbours.
//
// Memory beyond the outputs, up to some thousand dimensions and neighbours:
//   about 7 MB per thread, and 14 MB if a filter gives up;
//   the filter's copy of a class, one byte per element; several classes are copied together up to 12 MB;
//   a copy of a bank of at most 12 MB that must be widened or normalised.
#pragma once
#include "problem.h"

namespace dgcl {

template <typename T>
void knn_search(const KnnProblem& problem, const KnnEmit<T>& emit);

}  // namespace dgcl
