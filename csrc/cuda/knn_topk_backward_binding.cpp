#include <array>

#include "../common/metric.h"
#include "../ops/checks.h"
#include "binding.h"
#include "knn_topk_backward_kernel.h"

namespace dgcl {
namespace {

// torch.sort(keys, stable=True) of a vector: the sorted keys and their old positions.
std::tuple<Tensor, Tensor> stable_sort(const Tensor& keys) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(keys),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t(0)), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

std::tuple<Tensor, Tensor> knn_topk_backward_cuda(const Tensor& dL_dvalues, const Tensor& queries, const Tensor& bank,
                                                  const Tensor& values, const Tensor& indices, const MetricName& metric,
                                                  std::optional<Tensor> query_offsets, bool unit_bank) {
  const char* op = "knn_topk_backward";
  check_knn_topk_backward(dL_dvalues, queries, bank, values, indices, metric, query_offsets);
  const OnDeviceOf device(queries);
  const Tensor upstream = torch::stable::contiguous(dL_dvalues), score = torch::stable::contiguous(values),
               index = torch::stable::contiguous(indices);
  Tensor kept_queries, kept_bank, kept_offsets;
  KnnTopkBackwardArguments a;
  a.queries = row_view(queries, kept_queries);
  a.bank = row_view(bank, kept_bank);
  a.dL_dvalues = upstream.const_data_ptr();
  a.values = score.const_data_ptr();
  a.indices = static_cast<const int64_t*>(index.const_data_ptr());
  a.offsets = values_of(query_offsets, kept_offsets);
  a.num_queries = queries.size(0);
  a.num_classes = bank.dim() == 3 ? bank.size(0) : 1;
  a.bank_rows = bank.size(bank.dim() - 2);
  a.dim = queries.size(1);
  a.k = values.size(1);
  const Metric parsed = parse_metric(op, metric);
  a.l2 = parsed == Metric::l2;
  a.normalize_queries = parsed == Metric::cosine;
  a.normalize_bank = parsed == Metric::cosine && !unit_bank;
  const ScalarType type = compute_type(queries, bank);
  a.is_double = type == ScalarType::Double;

  const auto scratch = [&](int64_t rows, int64_t columns, ScalarType dtype) {
    return torch::stable::new_empty(queries, {rows, columns}, dtype);
  };
  const int64_t norm_bytes = row_norm_bytes(a.is_double), bank_total = a.num_classes * a.bank_rows,
                most = a.num_queries > bank_total ? a.num_queries : bank_total;
  Tensor query_norms = scratch(a.normalize_queries ? a.num_queries : 0, norm_bytes, ScalarType::Byte);
  Tensor bank_norms = scratch(a.normalize_bank ? bank_total : 0, norm_bytes, ScalarType::Byte);
  Tensor sums = scratch(most < kMostGradientWarps ? most : kMostGradientWarps, a.dim, type);
  Tensor keys = torch::stable::new_empty(queries, {a.num_queries * a.k}, ScalarType::Long);
  Tensor dL_dqueries = torch::stable::new_empty(queries, queries.sizes());
  Tensor dL_dbank = torch::stable::new_empty(bank, bank.sizes());
  a.query_norms = query_norms.mutable_data_ptr();
  a.bank_norms = bank_norms.mutable_data_ptr();
  a.sums = sums.mutable_data_ptr();
  a.keys = static_cast<int64_t*>(keys.mutable_data_ptr());
  a.dL_dqueries = dL_dqueries.mutable_data_ptr();
  a.dL_dbank = dL_dbank.mutable_data_ptr();

  check_launch(op, launch_knn_pair_keys(a, device.stream()));
  const auto [sorted, order] = stable_sort(keys);
  a.sorted_keys = static_cast<const int64_t*>(sorted.const_data_ptr());
  a.pairs = static_cast<const int64_t*>(order.const_data_ptr());
  check_launch(op, launch_knn_topk_backward(a, device.stream()));
  return {dL_dqueries, dL_dbank};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("knn_topk_backward", TORCH_BOX(&dgcl::knn_topk_backward_cuda));
}
