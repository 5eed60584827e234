#include "problem.h"

#include "../../common/counts.h"

namespace dgcl {

KnnTensors make_knn_problem(const char* op, const Tensor& queries, const Tensor& bank, int64_t k,
                            const std::string& metric, const std::optional<Tensor>& query_offsets,
                            const std::optional<Tensor>& bank_counts, bool exclude_self, bool unit_bank) {
  KnnTensors input;
  KnnProblem& p = input.problem;
  const int64_t num_queries = queries.size(0);
  p.dim = queries.size(1);
  p.bank_rows = bank.size(bank.dim() - 2);
  p.k = k;
  p.metric = parse_metric(op, metric);
  p.exclude_self = exclude_self;
  p.unit_bank = unit_bank;
  if (query_offsets) {
    p.offsets = read_offsets(op, "query_offsets", *query_offsets, num_queries);
  } else {
    p.offsets = {0, num_queries};
  }
  const size_t classes = p.offsets.size() - 1;
  p.counts = bank_counts ? read_counts(op, "bank_counts", *bank_counts, p.bank_rows)
                         : std::vector<int64_t>(classes, p.bank_rows);
  p.queries = row_source(queries, input.queries);
  p.bank = row_source(bank, input.bank);
  return input;
}

}  // namespace dgcl
