#include "../ops/checks.h"
#include "contrast_tensors.h"
#include "density_contrast_backward_kernel.h"

namespace dgcl {
namespace {

// `keep` owns the gradients of the unit rows, if raw rows have another dtype.
GradientOut gradient_out(Tensor& raw, ScalarType type, Tensor& keep) {
  keep = raw.scalar_type() == type ? raw : torch::stable::new_empty(raw, raw.sizes(), type);
  return {keep.mutable_data_ptr(), raw.mutable_data_ptr(), dtype_of(raw)};
}

std::tuple<Tensor, Tensor, Tensor> density_contrast_backward_cuda(const Tensor& dL_dloss, const Tensor& anchors,
                                                                  const Tensor& keys, const Tensor& negatives,
                                                                  const Tensor& lse, double temperature,
                                                                  std::optional<Tensor> anchor_counts,
                                                                  std::optional<Tensor> negative_counts,
                                                                  bool needs_key_grad) {
  check_density_contrast_backward(dL_dloss, anchors, keys, negatives, lse, temperature, anchor_counts, negative_counts);
  const OnDeviceOf device(anchors);
  const ContrastTensors input = contrast_tensors("density_contrast_backward", anchors, keys, negatives, temperature,
                                                 anchor_counts, negative_counts);
  const ContrastProblem& p = input.problem;
  const ScalarType type = compute_type(anchors, keys, negatives);
  const Tensor upstream = torch::stable::contiguous(dL_dloss), saved = torch::stable::contiguous(lse);
  Tensor dL_danchors = torch::stable::new_empty(anchors, anchors.sizes());
  Tensor dL_dkeys = needs_key_grad ? torch::stable::new_empty(keys, keys.sizes()) : torch::stable::new_empty(keys, {0});
  Tensor dL_dnegatives = needs_key_grad ? torch::stable::new_empty(negatives, negatives.sizes())
                                        : torch::stable::new_empty(negatives, {0});
  Tensor at_keys = torch::stable::new_empty(anchors, {p.groups, p.num_anchors}, ScalarType::Double);
  Tensor unit_anchors, unit_keys, unit_negatives;
  DensityContrastBackwardArguments a;
  a.problem = p;
  a.dL_dloss = upstream.const_data_ptr();
  a.lse = saved.const_data_ptr();
  a.needs_key_grad = needs_key_grad;
  a.at_keys = static_cast<double*>(at_keys.mutable_data_ptr());
  a.anchors = gradient_out(dL_danchors, type, unit_anchors);
  if (needs_key_grad) {
    a.keys = gradient_out(dL_dkeys, type, unit_keys);
    a.negatives = gradient_out(dL_dnegatives, type, unit_negatives);
  }
  check_launch("density_contrast_backward", launch_density_contrast_backward(a, device.stream()));
  return {dL_danchors, dL_dkeys, dL_dnegatives};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("density_contrast_backward", TORCH_BOX(&dgcl::density_contrast_backward_cuda));
}
