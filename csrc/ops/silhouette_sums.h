// silhouette_sums: distances of rows, summed by class. Contract: dgcl_ops/ops/silhouette_sums.py.
#pragma once
#include <optional>

#include "../common/check.h"

namespace dgcl {

void check_silhouette_sums(const Tensor& features, const Tensor& offsets, const std::optional<Tensor>& rows);

}  // namespace dgcl
