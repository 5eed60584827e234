#include "checks.h"
#include "knn_arguments.h"

namespace dgcl {

void check_knn_density(const Tensor& queries, const Tensor& bank, const std::vector<int64_t>& scales,
                       const std::string& metric, const std::optional<Tensor>& query_offsets,
                       const std::optional<Tensor>& bank_counts) {
  const char* op = "knn_density";
  check_knn_arguments(op, queries, bank, metric, query_offsets, bank_counts);
  if (scales.empty()) fail(op, "scales must contain at least one k, got []");
  for (int64_t k : scales)
    if (k < 1) fail(op, "scales must be positive, got ", k);
}

}  // namespace dgcl
