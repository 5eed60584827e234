// class_counts: how many labels of each class; refuses labels out of range. Contract: dgcl_ops/ops/class_counts.py.
#pragma once
#include "../common/check.h"

namespace dgcl {

void check_class_counts(const Tensor& labels, int64_t num_classes);

}  // namespace dgcl
