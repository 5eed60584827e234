#include "../ops/checks.h"
#include "binding.h"
#include "silhouette_sums_kernel.h"

namespace dgcl {
namespace {

Tensor silhouette_sums_cuda(const Tensor& features, const Tensor& offsets, const std::optional<Tensor>& rows) {
  check_silhouette_sums(features, offsets, rows);
  const OnDeviceOf device(features);
  const Tensor& queries = rows ? *rows : features;
  Tensor keep_rows, keep_features, keep_offsets;
  SilhouetteSumsArguments a;
  a.rows = row_view(queries, keep_rows);
  a.features = row_view(features, keep_features);
  a.num_rows = queries.size(0);
  a.num_features = features.size(0);
  a.dim = features.size(1);
  a.num_classes = offsets.numel() - 1;
  a.offsets = values_of(offsets, keep_offsets);
  Tensor sums = torch::stable::new_empty(features, {a.num_rows, a.num_classes}, ScalarType::Double);
  a.sums = static_cast<double*>(sums.mutable_data_ptr());
  check_launch("silhouette_sums", launch_silhouette_sums(a, device.stream()));
  return sums;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("silhouette_sums", TORCH_BOX(&dgcl::silhouette_sums_cuda));
}
