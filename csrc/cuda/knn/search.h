// The search that knn_topk and knn_density share. It gives each query sorted lists of neighbours. Each operator has its
// own kernel for the last step.
#pragma once
#include "../rows.h"

namespace dgcl {

constexpr int kItemQueries = 64;      // queries per work item, all of one class
constexpr int kMostSplits = 32;       // a lane of the last step's warp each
constexpr int kLeastSplitRows = 512;  // per part of the bank, so that lists cost less than scores
constexpr int kMostFilterK = 256;

// How the work is divided, and how much scratch memory it needs.
struct KnnSearchPlan {
  bool filter = false;      // tensor cores first; canonical tiles for the rest, or for everything
  bool wide_steps = false;  // the filter processes more columns of float32 rows at a time
  int32_t splits = 1;       // parts of the bank, for different blocks; at most so many in the filter
  int64_t split_rows = 0;   // rows per part of the exact search
  int64_t least_steps = 0;  // of a block of the filter (filter_cut.cuh)
  int32_t capacity = 0;     // candidates per query at a time; a power of two
  int64_t items = 0, exact_blocks = 0, filter_blocks = 0;
  int64_t candidate_lists = 0;  // in all blocks
};

// Upper bounds of lengths: a class's bank rows, these rows minus the mean, and the mean.
struct BankLengths {
  float row, residual, mean;
};

struct KnnSearchArguments {
  RowView queries, bank;
  int64_t dim, num_queries, bank_rows, num_classes;
  const int64_t* offsets = nullptr;  // [num_classes + 1] on the device; nullptr: one class
  const int64_t* counts = nullptr;   // [num_classes] on the device; nullptr: bank_rows each
  int32_t k;                         // at most max(1, bank_rows)
  bool normalize_queries, normalize_bank, l2, exclude_self;
  bool is_double;  // compute in double, else in float
  KnnSearchPlan plan;

  // Scratch memory, cut from one tensor. The first three parts start as zeros.
  int32_t* list_length = nullptr;   // [splits][num_queries]; -1 for a query with a NaN
  BankLengths* lengths = nullptr;   // [classes]
  int32_t* unresolved = nullptr;    // [items / splits], whether the filter leaves the query tile to the exact search
  float* mean = nullptr;            // [classes][dim], the mean of the class's bank rows
  float* bias = nullptr;            // [classes][bank_rows]
  void* bank_norms = nullptr;       // [classes][bank_rows] RowNorm<T>, if normalize_bank
  void* candidate_score = nullptr;  // [candidate_lists][capacity] T
  int32_t* candidate_index = nullptr;
  void* list_score = nullptr;  // [splits][num_queries][k] T, sorted
  int32_t* list_index = nullptr;
};

// Fills arguments.plan, which stays empty if there is nothing to search.
int plan_knn_search(KnnSearchArguments& arguments, bool allow_filter);
// Clears `zeros` bytes from list_length on, and launches the search.
int launch_knn_search(const KnnSearchArguments& arguments, int64_t zeros, void* stream);

}  // namespace dgcl
