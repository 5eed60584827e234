#include "checks.h"

namespace dgcl {

void check_partition_keys(const Tensor& labels, const Tensor& usable, const Tensor& bits, int64_t num_classes) {
  const char* op = "partition_keys";
  if (num_classes < 1) fail(op, "num_classes must be at least 1, got ", num_classes);
  if (num_classes > INT32_MAX) fail(op, "num_classes must be less than 2^31, got ", num_classes);
  check_shape(op, "labels", labels, {-1}, "[R]");
  switch (labels.scalar_type()) {
    case ScalarType::Long:
    case ScalarType::Int:
    case ScalarType::Short:
    case ScalarType::Char:
    case ScalarType::Byte:
      break;
    default:
      fail(op, "labels must be int64, int32, int16, int8 or uint8, got ", dtype_name(labels.scalar_type()));
  }
  check_given(op, "usable", usable);
  if (usable.scalar_type() != ScalarType::Bool) fail(op, "usable must be bool, got ", dtype_name(usable.scalar_type()));
  check_shape(op, "usable", usable, {labels.size(0)}, "[R] with the labels' R");
  check_same_device(op, "usable", usable, "labels", labels);
  check_int64_vector(op, "bits", bits, labels.size(0), "[R] with the labels' R");
  check_same_device(op, "bits", bits, "labels", labels);
}

}  // namespace dgcl
