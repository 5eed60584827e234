// The argument rules that knn_topk and knn_density share.
#pragma once
#include <optional>

#include "../common/check.h"
#include "../common/metric.h"

namespace dgcl {

// queries [M, D], and bank [N, D], or [C, N, D] with query_offsets [C + 1] and optional bank_counts [C].
inline void check_knn_arguments(const char* op, const Tensor& queries, const Tensor& bank, const std::string& metric,
                                const std::optional<Tensor>& query_offsets, const std::optional<Tensor>& bank_counts) {
  parse_metric(op, metric);
  check_float(op, "queries", queries);
  check_float(op, "bank", bank);
  check_shape(op, "queries", queries, {-1, -1}, "[M, D]");
  if (bank.dim() != 2 && bank.dim() != 3) fail(op, "bank must have shape [N, D] or [C, N, D], got ", shape_of(bank));
  const int64_t dim = queries.size(1);
  if (dim < 1) fail(op, "queries must have at least one column, got ", shape_of(queries));
  if (bank.size(bank.dim() - 1) != dim) fail(op, "bank must have ", dim, " columns like queries, got ", shape_of(bank));
  if (bank.size(bank.dim() - 2) > INT32_MAX)
    fail(op, "bank must have fewer than 2^31 rows per class, got ", shape_of(bank));
  check_same_device(op, "bank", bank, "queries", queries);
  const bool grouped = bank.dim() == 3;
  if (grouped != query_offsets.has_value())
    fail(op,
         grouped ? "query_offsets is required with a bank of shape [C, N, D], got None"
                 : "query_offsets needs a bank of shape [C, N, D], got ",
         grouped ? "" : shape_of(bank));
  if (!grouped && bank_counts) fail(op, "bank_counts needs a bank of shape [C, N, D], got ", shape_of(bank));
  if (query_offsets) {
    check_int64_vector(op, "query_offsets", *query_offsets, bank.size(0) + 1, "[C + 1]");
    check_same_device(op, "query_offsets", *query_offsets, "queries", queries);
  }
  if (bank_counts) {
    check_int64_vector(op, "bank_counts", *bank_counts, bank.size(0), "[C]");
    check_same_device(op, "bank_counts", *bank_counts, "queries", queries);
  }
}

}  // namespace dgcl
