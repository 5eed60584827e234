#include "../ops/checks.h"
#include "contrast_tensors.h"

namespace dgcl {
namespace {

std::tuple<Tensor, Tensor> density_contrast_cuda(const Tensor& anchors, const Tensor& keys, const Tensor& negatives,
                                                 double temperature, std::optional<Tensor> anchor_counts,
                                                 std::optional<Tensor> negative_counts, double eps) {
  check_density_contrast(anchors, keys, negatives, temperature, anchor_counts, negative_counts, eps);
  const OnDeviceOf device(anchors);
  const ContrastTensors input =
      contrast_tensors("density_contrast", anchors, keys, negatives, temperature, anchor_counts, negative_counts);
  const ContrastProblem& p = input.problem;
  const ScalarType type = compute_type(anchors, keys, negatives);
  Tensor loss = torch::stable::new_empty(anchors, {p.groups}, type);
  Tensor lse = torch::stable::new_empty(anchors, {p.groups, p.num_anchors}, type);
  Tensor terms = torch::stable::new_empty(anchors, {p.groups, p.num_anchors}, ScalarType::Double);
  DensityContrastArguments a;
  a.problem = p;
  a.eps = eps;
  a.terms = static_cast<double*>(terms.mutable_data_ptr());
  a.loss = loss.mutable_data_ptr();
  a.lse = lse.mutable_data_ptr();
  check_launch("density_contrast", launch_density_contrast(a, device.stream()));
  return {loss, lse};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("density_contrast", TORCH_BOX(&dgcl::density_contrast_cuda));
}
