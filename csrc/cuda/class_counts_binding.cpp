#include "../ops/checks.h"
#include "binding.h"
#include "class_counts_kernel.h"

namespace dgcl {
namespace {

Tensor class_counts_cuda(const Tensor& labels, int64_t num_classes, int64_t ignore_index) {
  check_class_counts(labels, num_classes);
  const OnDeviceOf device(labels);
  const Tensor dense = torch::stable::contiguous(labels);
  Tensor counts = torch::stable::new_zeros(labels, {num_classes}, ScalarType::Long);
  ClassCountsArguments a;
  a.labels = dense.const_data_ptr();
  a.label_bytes = static_cast<int>(labels.element_size());
  a.is_unsigned = labels.scalar_type() == ScalarType::Byte;
  a.num_labels = labels.numel();
  a.num_classes = num_classes;
  a.ignore_index = ignore_index;
  a.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  check_launch("class_counts", launch_class_counts(a, device.stream()));
  return counts;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("class_counts", TORCH_BOX(&dgcl::class_counts_cuda));
}
