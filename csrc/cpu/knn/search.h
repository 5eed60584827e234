// Exact k nearest neighbours of every query, class by class, without a similarity matrix.
//
// Work item: a block of queries of one class, searched by one thread (knn_block.h). A filter, 8-bit integers or floats,
// scores the class's rows tile by tile; the few that its error bound leaves get the canonical score. Classes with few
// queries or hardly more rows than k, and queries whose neighbours lie within the filter's error of too many others, get
// canonical scores of everything, in tiles.
// Memory beyond the outputs, up to some thousand dimensions and neighbours: about 7 MB a thread, twice that where a
// filter gives up; the filter's copy of the classes searched at a time, one byte an element, of one class or of 12 MB
// together; and a copy of a bank of at most 12 MB that needs widening or normalising.
#pragma once
#include "problem.h"

namespace dgcl {

template <typename T>
void knn_search(const KnnProblem& problem, const KnnEmit<T>& emit);

}  // namespace dgcl
