// The search that knn_topk and knn_density share: sorted lists of neighbours per query, then one kernel each to finish.
#pragma once
#include "rows.h"

namespace dgcl {

struct KnnSearchArguments {
  Rows queries, bank;
  int64_t dim, num_queries, bank_rows, num_classes;
  const int64_t* offsets = nullptr;  // [num_classes + 1] on the device; nullptr: one class of all queries
  const int64_t* counts = nullptr;   // [num_classes] on the device; nullptr: bank_rows each
  int32_t k;                         // at most max(1, bank_rows)
  bool normalise_queries, normalise_bank, l2, exclude_self;

  // Scratch memory, sized by a KnnSearchPlan.
  int32_t splits;        // parts of the bank that are searched by different blocks
  int64_t split_rows;    // rows of a part
  bool filter;           // tensor cores first; what they cannot settle, and all without them, by canonical tiles
  int32_t capacity;      // candidates a query may have at a time; a power of two
  void* norm = nullptr;  // [classes][bank_rows] T: lengths of bank rows, if normalise_bank
  int32_t* norm_exponent = nullptr;  // [classes][bank_rows]
  void* candidate_score = nullptr;   // [blocks][kItemQueries][capacity] T
  int32_t* candidate_index = nullptr;
  void* list_score = nullptr;  // [splits][num_queries][k] T, sorted
  int32_t* list_index = nullptr;
  int32_t* list_length = nullptr;  // [splits][num_queries], zeros; -1 for a query with a NaN
  float* mean = nullptr;           // [classes][dim], of the class's bank rows
  float* bias = nullptr;           // [classes][bank_rows]
  float* reach = nullptr;          // [classes][kReach], zeros: bounds of lengths
  int32_t* settled = nullptr;      // [items], zeros
};

constexpr int kItemQueries = 64;  // queries of one work item, all of one class
constexpr int kReach = 3;         // of bank rows, of bank rows less the mean, of the mean
constexpr int kMostSplits = 32;   // a lane of the finishing warp each
constexpr int kMostFilterK = 256;

// How much scratch memory a search needs, and how it is cut up.
struct KnnSearchPlan {
  bool filter;
  int32_t splits, capacity;
  int64_t split_rows, items, exact_blocks, filter_blocks;
};

int plan_knn_search(const KnnSearchArguments& arguments, bool is_double, bool allow_filter, KnnSearchPlan* plan);
int launch_knn_search(const KnnSearchArguments& arguments, bool is_double, const KnnSearchPlan& plan, void* stream);

}  // namespace dgcl
