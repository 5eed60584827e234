#include <algorithm>

#include "../ops/checks.h"
#include "knn/search_binding.h"
#include "knn_density_kernel.h"

namespace dgcl {
namespace {

Tensor knn_density_cuda(const Tensor& queries, const Tensor& bank, std::vector<int64_t> scales,
                        const MetricName& metric, std::optional<Tensor> query_offsets,
                        std::optional<Tensor> bank_counts, bool exclude_self, bool per_scale, bool unit_bank) {
  const char* op = "knn_density";
  check_knn_density(queries, bank, scales, metric, query_offsets, bank_counts);
  const int64_t num_scales = static_cast<int64_t>(scales.size()), m = queries.size(0);
  if (num_scales > kMostScales)
    fail(op, "scales must have at most ", kMostScales, " entries on CUDA, got ", num_scales);
  const OnDeviceOf device(queries);
  const int64_t k = *std::max_element(scales.begin(), scales.end());
  const KnnSearchOnDevice search(op, queries, bank, k, metric, query_offsets, bank_counts, exclude_self, unit_bank,
                                 device.stream());
  const ScalarType type = compute_type(queries, bank);
  Tensor out = per_scale ? torch::stable::new_empty(queries, {num_scales, m}, type)
                         : torch::stable::new_empty(queries, {m}, type);
  if (m == 0) return out;
  KnnDensityArguments a;
  a.search = search.arguments();
  std::copy(scales.begin(), scales.end(), a.scales);
  a.num_scales = static_cast<int32_t>(num_scales);
  a.per_scale = per_scale;
  a.density = out.mutable_data_ptr();
  check_launch(op, launch_knn_density(a, device.stream()));
  return out;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("knn_density", TORCH_BOX(&dgcl::knn_density_cuda));
}
