#include "../ops/checks.h"
#include "knn/search_binding.h"
#include "knn_topk_kernel.h"

namespace dgcl {
namespace {

std::tuple<Tensor, Tensor> knn_topk_cuda(const Tensor& queries, const Tensor& bank, int64_t k, const MetricName& metric,
                                         std::optional<Tensor> query_offsets, std::optional<Tensor> bank_counts,
                                         bool exclude_self, bool unit_bank) {
  const char* op = "knn_topk";
  check_knn_topk(queries, bank, k, metric, query_offsets, bank_counts);
  const OnDeviceOf device(queries);
  const KnnSearchOnDevice search(op, queries, bank, k, metric, query_offsets, bank_counts, exclude_self, unit_bank,
                                 device.stream());
  Tensor values = torch::stable::new_empty(queries, {queries.size(0), k}, compute_type(queries, bank));
  Tensor indices = torch::stable::new_empty(queries, {queries.size(0), k}, ScalarType::Long);
  if (queries.size(0) == 0) return {values, indices};
  KnnTopkArguments a;
  a.search = search.arguments();
  a.k = k;
  a.values = values.mutable_data_ptr();
  a.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
  check_launch(op, launch_knn_topk(a, device.stream()));
  return {values, indices};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) { m.impl("knn_topk", TORCH_BOX(&dgcl::knn_topk_cuda)); }
