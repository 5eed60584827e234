#include "search_binding.h"

#include <algorithm>
#include <cstdlib>

namespace dgcl {
namespace {

// DGCL_OPS_CUDA_SEARCH=exact disables tensor cores, for comparison and to isolate differences.
bool filter_allowed(const char* op) {
  const char* set = std::getenv("DGCL_OPS_CUDA_SEARCH");
  const std::string setting = set ? set : "auto";
  if (setting != "auto" && setting != "exact") fail(op, "DGCL_OPS_CUDA_SEARCH must be auto or exact, got ", setting);
  return setting == "auto";
}

}  // namespace

template <typename U>
U* KnnSearchOnDevice::scratch(int64_t count, bool zeros) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(U));
  scratch_.push_back(zeros ? torch::stable::new_zeros(like_, {bytes}, ScalarType::Byte)
                           : torch::stable::new_empty(like_, {bytes}, ScalarType::Byte));
  return static_cast<U*>(scratch_.back().mutable_data_ptr());
}

KnnSearchOnDevice::KnnSearchOnDevice(const char* op, const Tensor& queries, const Tensor& bank, int64_t k,
                                     const std::string& metric, const std::optional<Tensor>& query_offsets,
                                     const std::optional<Tensor>& bank_counts, bool exclude_self, bool unit_bank,
                                     void* stream)
    : like_(queries) {
  const Metric kind = parse_metric(op, metric);
  a_.queries = row_view(queries, queries_);
  a_.bank = row_view(bank, bank_);
  a_.dim = queries.size(1);
  a_.num_queries = queries.size(0);
  a_.bank_rows = bank.size(bank.dim() - 2);
  a_.num_classes = bank.dim() == 3 ? bank.size(0) : 1;
  a_.offsets = values_of(query_offsets, offsets_);
  a_.counts = values_of(bank_counts, counts_);
  a_.k = static_cast<int32_t>(std::min(k, std::max<int64_t>(1, a_.bank_rows)));
  a_.normalize_queries = kind == Metric::cosine;
  a_.normalize_bank = kind == Metric::cosine && !unit_bank;
  a_.l2 = kind == Metric::l2;
  a_.exclude_self = exclude_self;
  a_.is_double = compute_type(queries, bank) == ScalarType::Double;

  // Indices and candidate lists are counted in 32 bits. A grid has fewer than 2^31 blocks of 8 rows.
  constexpr int64_t kMostRows = (1 << 30) - 4 * kItemQueries, kMostInAll = int64_t(8) * INT32_MAX;
  if (a_.bank_rows > kMostRows)
    fail(op, "bank must have at most ", kMostRows, " rows per class on CUDA, got ", a_.bank_rows);
  if (a_.num_queries > kMostInAll)
    fail(op, "queries must have at most ", kMostInAll, " rows on CUDA, got ", a_.num_queries);
  if (a_.num_classes > kMostInAll / std::max<int64_t>(1, a_.bank_rows))
    fail(op, "bank must have at most ", kMostInAll, " rows on CUDA, got ", shape_of(bank));

  const bool is_empty = a_.num_queries == 0 || a_.bank_rows == 0 || a_.num_classes == 0;
  if (!is_empty) check_launch(op, plan_knn_search(a_, filter_allowed(op)));
  const KnnSearchPlan& plan = a_.plan;
  const int64_t size = a_.is_double ? sizeof(double) : sizeof(float);
  const int64_t rows = a_.num_classes * a_.bank_rows, lists = plan.splits * a_.num_queries;
  a_.list_length = scratch<int32_t>(lists, true);
  if (is_empty) return;
  const int64_t candidates = plan.candidate_lists * plan.capacity;
  a_.candidate_score = scratch<char>(candidates * size);
  a_.candidate_index = scratch<int32_t>(candidates);
  a_.list_score = scratch<char>(lists * a_.k * size);
  a_.list_index = scratch<int32_t>(lists * a_.k);
  if (a_.normalize_bank) a_.bank_norms = scratch<char>(rows * row_norm_bytes(a_.is_double));
  if (plan.filter) {
    a_.mean = scratch<float>(a_.num_classes * a_.dim);
    a_.bias = scratch<float>(rows);
    a_.lengths = scratch<BankLengths>(a_.num_classes, true);
    a_.resolved = scratch<int32_t>(plan.items, true);
  }
  check_launch(op, launch_knn_search(a_, stream));
}

}  // namespace dgcl
