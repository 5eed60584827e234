#include "checks.h"

namespace dgcl {

void check_silhouette_sums(const Tensor& features, const Tensor& offsets, const std::optional<Tensor>& rows) {
  const char* op = "silhouette_sums";
  check_float(op, "features", features);
  check_shape(op, "features", features, {-1, -1}, "[N, D]");
  check_int64_vector(op, "offsets", offsets, -1, "[C + 1]");
  if (offsets.numel() < 1) fail(op, "offsets must have shape [C + 1], got ", shape_of(offsets));
  check_same_device(op, "offsets", offsets, "features", features);
  if (!rows) return;
  check_float(op, "rows", *rows);
  check_shape(op, "rows", *rows, {-1, features.size(1)}, "[M, D] with the features' D");
  check_same_device(op, "rows", *rows, "features", features);
}

}  // namespace dgcl
