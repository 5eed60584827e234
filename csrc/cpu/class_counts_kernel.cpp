#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../ops/checks.h"

namespace dgcl {
namespace {

template <typename Label>
void count(const Tensor& labels, int64_t num_classes, int64_t ignore_index, int64_t* counts) {
  const Label* label = static_cast<const Label*>(labels.const_data_ptr());
  for (int64_t i = 0; i < labels.numel(); ++i) {
    const int64_t c = label[i];
    if (c == ignore_index) continue;
    if (c < 0 || c >= num_classes)
      fail("class_counts", "labels must lie in [0, ", num_classes, ") or equal ignore_index ", ignore_index, ", got ",
           c);
    ++counts[c];
  }
}

Tensor class_counts_cpu(const Tensor& labels, int64_t num_classes, int64_t ignore_index) {
  check_class_counts(labels, num_classes);
  const Tensor dense = torch::stable::contiguous(labels);
  Tensor out = torch::stable::new_empty(labels, {num_classes}, ScalarType::Long);
  int64_t* counts = static_cast<int64_t*>(out.mutable_data_ptr());
  std::fill_n(counts, num_classes, int64_t(0));
  switch (labels.scalar_type()) {
    case ScalarType::Long:
      count<int64_t>(dense, num_classes, ignore_index, counts);
      break;
    case ScalarType::Int:
      count<int32_t>(dense, num_classes, ignore_index, counts);
      break;
    case ScalarType::Short:
      count<int16_t>(dense, num_classes, ignore_index, counts);
      break;
    case ScalarType::Char:
      count<int8_t>(dense, num_classes, ignore_index, counts);
      break;
    default:
      count<uint8_t>(dense, num_classes, ignore_index, counts);
  }
  return out;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("class_counts", TORCH_BOX(&dgcl::class_counts_cpu)); }
