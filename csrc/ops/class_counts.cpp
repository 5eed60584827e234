#include "checks.h"

namespace dgcl {

void check_class_counts(const Tensor& labels, int64_t num_classes) {
  const char* op = "class_counts";
  if (num_classes < 1) fail(op, "num_classes must be at least 1, got ", num_classes);
  if (num_classes > INT32_MAX) fail(op, "num_classes must be less than 2^31, got ", num_classes);
  check_given(op, "labels", labels);
  switch (labels.scalar_type()) {
    case ScalarType::Long:
    case ScalarType::Int:
    case ScalarType::Short:
    case ScalarType::Char:
    case ScalarType::Byte:
      return;
    default:
      fail(op, "labels must be int64, int32, int16, int8 or uint8, got ", dtype_name(labels.scalar_type()));
  }
}

}  // namespace dgcl
