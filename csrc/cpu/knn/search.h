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
#include <functional>
#include <vector>

#include "../common/metric.h"
#include "rows.h"

namespace dgcl {

template <typename T>
struct Neighbour {
  T score;
  int32_t index;  // row of the class's bank
};

struct KnnProblem {
  RowSource queries, bank;
  int64_t dim = 0;
  int64_t bank_rows = 0;         // rows allocated per class
  std::vector<int64_t> offsets;  // [classes + 1], queries of class c are [offsets[c], offsets[c + 1])
  std::vector<int64_t> counts;   // [classes], rows of the bank in use
  int64_t k = 1;
  Metric metric = Metric::cosine;
  bool exclude_self = false;
  bool unit_bank = false;  // cosine: the bank's rows have length 1 already
};

// Receives each query once, from any thread: neighbours [found] sorted by (score downward, index upward), found <= k.
// A query with a NaN gets found = -1. Queries outside all classes, of a class without rows, or, with exclude_self, beyond the bank's
// rows get no call.
template <typename T>
using KnnEmit = std::function<void(int64_t query, const Neighbour<T>* neighbours, int64_t found)>;

template <typename T>
void knn_search(const KnnProblem& problem, const KnnEmit<T>& emit);

}  // namespace dgcl
