#include "checks.h"
#include "knn_arguments.h"

namespace dgcl {

void check_knn_topk(const Tensor& queries, const Tensor& bank, int64_t k, const std::string& metric,
                    const std::optional<Tensor>& query_offsets, const std::optional<Tensor>& bank_counts) {
  check_knn_arguments("knn_topk", queries, bank, metric, query_offsets, bank_counts);
  if (k < 1) fail("knn_topk", "k must be at least 1, got ", k);
  // No class has that many rows (check_knn_arguments), and the outputs would not fit into memory.
  if (k > INT32_MAX) fail("knn_topk", "k must be less than 2^31, got ", k);
}

void check_knn_topk_backward(const Tensor& dL_dvalues, const Tensor& queries, const Tensor& bank, const Tensor& values,
                             const Tensor& indices, const std::string& metric,
                             const std::optional<Tensor>& query_offsets) {
  const char* op = "knn_topk_backward";
  check_knn_arguments(op, queries, bank, metric, query_offsets, std::nullopt);
  check_shape(op, "values", values, {queries.size(0), -1}, "[M, k]");
  check_shape(op, "indices", indices, {queries.size(0), values.size(1)}, "[M, k]");
  check_shape(op, "dL_dvalues", dL_dvalues, {queries.size(0), values.size(1)}, "[M, k]");
  if (indices.scalar_type() != ScalarType::Long)
    fail(op, "indices must be int64, got ", dtype_name(indices.scalar_type()));
  const ScalarType type = compute_type(queries, bank);
  for (const auto& [name, tensor] : {std::pair{"values", values}, std::pair{"dL_dvalues", dL_dvalues}}) {
    if (tensor.scalar_type() != type)
      fail(op, name, " must be ", dtype_name(type), ", got ", dtype_name(tensor.scalar_type()));
    check_same_device(op, name, tensor, "queries", queries);
  }
  check_same_device(op, "indices", indices, "queries", queries);
}

}  // namespace dgcl
