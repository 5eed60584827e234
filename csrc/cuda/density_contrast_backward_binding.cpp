#include "../ops/checks.h"
#include "contrast_tensors.h"
#include "density_contrast_backward_kernel.h"

namespace dgcl {
namespace {

// `keep` holds the unit rows' gradients where those of the raw rows have another dtype.
GradientRows gradient_rows(Tensor& raw, ScalarType type, Tensor& keep) {
  keep = raw.scalar_type() == type ? raw : torch::stable::new_empty(raw, raw.sizes(), type);
  return {keep.mutable_data_ptr(), raw.mutable_data_ptr(), dtype_of(raw)};
}

std::tuple<Tensor, Tensor, Tensor> density_contrast_backward_cuda(const Tensor& dL_dloss, const Tensor& anchors,
                                                                  const Tensor& keys, const Tensor& negatives,
                                                                  const Tensor& lse, double temperature,
                                                                  std::optional<Tensor> anchor_counts,
                                                                  std::optional<Tensor> negative_counts,
                                                                  bool all_gradients) {
  check_density_contrast_backward(dL_dloss, anchors, keys, negatives, lse, temperature, anchor_counts, negative_counts);
  const OnDeviceOf device(anchors);
  const ContrastTensors made = contrast_tensors("density_contrast_backward", anchors, keys, negatives, temperature,
                                                anchor_counts, negative_counts);
  const ContrastProblem& p = made.problem;
  const ScalarType type = compute_type(anchors, keys, negatives);
  const Tensor upstream = torch::stable::contiguous(dL_dloss), saved = torch::stable::contiguous(lse);
  Tensor dL_danchors = torch::stable::new_empty(anchors, anchors.sizes());
  Tensor dL_dkeys = all_gradients ? torch::stable::new_empty(keys, keys.sizes()) : torch::stable::new_empty(keys, {0});
  Tensor dL_dnegatives =
      all_gradients ? torch::stable::new_empty(negatives, negatives.sizes()) : torch::stable::new_empty(negatives, {0});
  Tensor at_keys = torch::stable::new_empty(anchors, {p.groups, p.num_anchors}, ScalarType::Double);
  Tensor unit_anchors, unit_keys, unit_negatives;
  DensityContrastBackwardArguments a;
  a.problem = p;
  a.dL_dloss = upstream.const_data_ptr();
  a.lse = saved.const_data_ptr();
  a.all_gradients = all_gradients;
  a.at_keys = static_cast<double*>(at_keys.mutable_data_ptr());
  a.anchors = gradient_rows(dL_danchors, type, unit_anchors);
  if (all_gradients) {
    a.keys = gradient_rows(dL_dkeys, type, unit_keys);
    a.negatives = gradient_rows(dL_dnegatives, type, unit_negatives);
  }
  check_launch("density_contrast_backward", launch_density_contrast_backward(a, device.stream()));
  return {dL_danchors, dL_dkeys, dL_dnegatives};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("density_contrast_backward", TORCH_BOX(&dgcl::density_contrast_backward_cuda));
}
