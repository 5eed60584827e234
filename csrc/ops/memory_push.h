// memory_push: writes rows into the class rings in place. Contract: dgcl_ops/ops/memory_push.py.
#pragma once
#include "../common/check.h"

namespace dgcl {

void check_memory_push(const Tensor& bank_features, const Tensor& bank_projections, const Tensor& bank_density,
                       const Tensor& counts, const Tensor& heads, const Tensor& features, const Tensor& projections,
                       const Tensor& density, const Tensor& row_counts);

}  // namespace dgcl
