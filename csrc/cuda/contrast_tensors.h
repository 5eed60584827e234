// Turns the checked tensors of the contrastive loss into what its kernels read.
#pragma once
#include <cmath>

#include "binding.h"
#include "density_contrast_kernel.h"

namespace dgcl {

struct ContrastTensors {
  ContrastProblem problem;
  // They own the memory that the problem points to.
  Tensor anchors, keys, negatives, anchor_counts, negative_counts, unit_rows;
};

// 1 / x if that is exact, which it is for powers of two. Else 0.
inline double exact_inverse(double x) {
  int exponent = 0;
  return std::frexp(x, &exponent) == 0.5 && std::isfinite(1 / x) ? 1 / x : 0;
}

inline ContrastTensors contrast_tensors(const char* op, const Tensor& anchors, const Tensor& keys,
                                        const Tensor& negatives, double temperature,
                                        const std::optional<Tensor>& anchor_counts,
                                        const std::optional<Tensor>& negative_counts) {
  ContrastTensors input;
  ContrastProblem& p = input.problem;
  p.anchors = row_view(anchors, input.anchors);
  p.keys = row_view(keys, input.keys);
  p.keys.group_stride = p.keys.row_stride;
  p.negatives = row_view(negatives, input.negatives);
  p.anchor_counts = values_of(anchor_counts, input.anchor_counts);
  p.negative_counts = values_of(negative_counts, input.negative_counts);
  p.groups = anchors.size(0);
  p.num_anchors = anchors.size(1);
  p.num_negatives = negatives.size(1);
  p.dim = anchors.size(2);
  p.temperature = temperature;
  p.inverse_temperature = exact_inverse(temperature);
  p.is_double = compute_type(anchors, keys, negatives) == ScalarType::Double;
  if (p.dim > kMostContrastColumns)
    fail(op, "anchors must have at most ", kMostContrastColumns, " columns on CUDA, got ", p.dim);
  p.unit_pitch = static_cast<int>(contrast_unit_pitch(p.dim));
  input.unit_rows = torch::stable::new_empty(anchors, {p.groups, p.slots(), p.unit_pitch},
                                             p.is_double ? ScalarType::Double : ScalarType::Float);
  p.unit_rows = input.unit_rows.mutable_data_ptr();
  return input;
}

}  // namespace dgcl
