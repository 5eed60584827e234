#include <tuple>

#include "../math/partition_key.h"
#include "../ops/checks.h"
#include "binding.h"
#include "partition_keys_kernel.h"

namespace dgcl {
namespace {

std::tuple<Tensor, Tensor> partition_keys_cuda(const Tensor& labels, const Tensor& usable, const Tensor& bits,
                                               int64_t num_classes, int64_t ignore_index) {
  check_partition_keys(labels, usable, bits, num_classes);
  const OnDeviceOf device(labels);
  const Tensor dense_labels = torch::stable::contiguous(labels), dense_usable = torch::stable::contiguous(usable);
  const Tensor dense_bits = torch::stable::contiguous(bits);
  Tensor keys = torch::stable::new_empty(labels, {labels.numel()}, ScalarType::Long);
  Tensor counts = torch::stable::new_zeros(labels, {num_classes + kSkippedSlots}, ScalarType::Long);
  PartitionKeysArguments a;
  a.labels = dense_labels.const_data_ptr();
  a.label_bytes = static_cast<int>(labels.element_size());
  a.is_unsigned = labels.scalar_type() == ScalarType::Byte;
  a.usable = static_cast<const uint8_t*>(dense_usable.const_data_ptr());
  a.bits = static_cast<const int64_t*>(dense_bits.const_data_ptr());
  a.num_pixels = labels.numel();
  a.num_classes = num_classes;
  a.ignore_index = ignore_index;
  a.keys = static_cast<int64_t*>(keys.mutable_data_ptr());
  a.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  check_launch("partition_keys", launch_partition_keys(a, device.stream()));
  return {keys, counts};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("partition_keys", TORCH_BOX(&dgcl::partition_keys_cuda));
}
