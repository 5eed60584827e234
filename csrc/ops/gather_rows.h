// gather_rows: the vectors of chosen pixels of a feature map. Contract: dgcl_ops/ops/gather_rows.py.
#pragma once
#include "../common/check.h"

namespace dgcl {

void check_gather_rows(const Tensor& maps, const Tensor& pixels);

}  // namespace dgcl
