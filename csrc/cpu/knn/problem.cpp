#include "knn_problem.h"

namespace dgcl {

std::vector<int64_t> read_counts(const char* op, const char* name, const Tensor& t, int64_t largest) {
  const Tensor values = torch::stable::contiguous(t);
  const int64_t* data = static_cast<const int64_t*>(values.const_data_ptr());
  std::vector<int64_t> out(data, data + values.numel());
  for (int64_t value : out)
    if (value < 0 || value > largest) fail(op, name, " must lie in [0, ", largest, "], got ", value);
  return out;
}

KnnTensors make_knn_problem(const char* op, const Tensor& queries, const Tensor& bank, int64_t k,
                            const std::string& metric, const std::optional<Tensor>& query_offsets,
                            const std::optional<Tensor>& bank_counts, bool exclude_self, bool unit_bank) {
  KnnTensors made;
  KnnProblem& p = made.problem;
  const int64_t num_queries = queries.size(0);
  p.dim = queries.size(1);
  p.bank_rows = bank.size(bank.dim() - 2);
  p.k = k;
  p.metric = parse_metric(op, metric);
  p.exclude_self = exclude_self;
  p.unit_bank = unit_bank;
  if (query_offsets) {
    p.offsets = read_counts(op, "query_offsets", *query_offsets, num_queries);
    for (size_t c = 1; c < p.offsets.size(); ++c)
      if (p.offsets[c] < p.offsets[c - 1])
        fail(op, "query_offsets must not decrease, got ", p.offsets[c - 1], " before ", p.offsets[c]);
  } else {
    p.offsets = {0, num_queries};
  }
  const size_t classes = p.offsets.size() - 1;
  p.counts = bank_counts ? read_counts(op, "bank_counts", *bank_counts, p.bank_rows)
                         : std::vector<int64_t>(classes, p.bank_rows);
  p.queries = row_source(queries, made.queries);
  p.bank = row_source(bank, made.bank);
  return made;
}

}  // namespace dgcl
