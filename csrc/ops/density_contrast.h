// density_contrast: anchors pulled to their group's key, away from its negatives. Contract:
// dgcl_ops/ops/density_contrast.py.
#pragma once
#include <optional>

#include "../common/check.h"

namespace dgcl {

void check_density_contrast(const Tensor& anchors, const Tensor& keys, const Tensor& negatives, double temperature,
                            const std::optional<Tensor>& anchor_counts, const std::optional<Tensor>& negative_counts,
                            double eps);

void check_density_contrast_backward(const Tensor& dL_dloss, const Tensor& anchors, const Tensor& keys,
                                     const Tensor& negatives, const Tensor& lse, double temperature,
                                     const std::optional<Tensor>& anchor_counts,
                                     const std::optional<Tensor>& negative_counts);

}  // namespace dgcl
