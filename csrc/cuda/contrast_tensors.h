// From the tensors of the contrastive loss, which passed their checks, to what the kernels read.
#pragma once
#include "binding.h"
#include "density_contrast_kernel.h"

namespace dgcl {

struct ContrastTensors {
  ContrastProblem problem;
  Tensor anchors, keys, negatives, anchor_counts, negative_counts, unit_rows;  // what the problem points into
};

inline ContrastTensors contrast_tensors(const char* op, const Tensor& anchors, const Tensor& keys,
                                        const Tensor& negatives, double temperature,
                                        const std::optional<Tensor>& anchor_counts,
                                        const std::optional<Tensor>& negative_counts) {
  ContrastTensors made;
  ContrastProblem& p = made.problem;
  p.anchors = rows_of(anchors, made.anchors);
  p.keys = rows_of(keys, made.keys);
  p.keys.group_stride = p.keys.row_stride;
  p.negatives = rows_of(negatives, made.negatives);
  p.anchor_counts = values_of(anchor_counts, made.anchor_counts);
  p.negative_counts = values_of(negative_counts, made.negative_counts);
  p.groups = anchors.size(0);
  p.num_anchors = anchors.size(1);
  p.num_negatives = negatives.size(1);
  p.dim = anchors.size(2);
  p.temperature = temperature;
  p.is_double = compute_type(anchors, keys, negatives) == ScalarType::Double;
  if (p.dim > kMostContrastColumns)
    fail(op, "anchors must have at most ", kMostContrastColumns, " columns on CUDA, got ", p.dim);
  p.unit_pitch = static_cast<int>(contrast_unit_pitch(p.dim));
  made.unit_rows = torch::stable::new_empty(anchors, {p.groups, p.slots(), p.unit_pitch},
                                            p.is_double ? ScalarType::Double : ScalarType::Float);
  p.unit_rows = made.unit_rows.mutable_data_ptr();
  return made;
}

}  // namespace dgcl
