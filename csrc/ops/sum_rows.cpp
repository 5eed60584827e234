#include "checks.h"

namespace dgcl {

void check_sum_rows(const Tensor& rows, const std::optional<Tensor>& indices, const Tensor& row_counts) {
  const char* op = "sum_rows";
  check_float(op, "rows", rows);
  const bool grouped = rows.dim() == 3;
  if (rows.dim() != 2 && !grouped) fail(op, "rows must have shape [N, E] or [C, N, E], got ", shape_of(rows));
  if (!indices && !grouped) fail(op, "rows must have shape [C, P, E] without indices, got ", shape_of(rows));
  if (indices) {
    if (indices->scalar_type() != ScalarType::Long)
      fail(op, "indices must be int64, got ", dtype_name(indices->scalar_type()));
    check_shape(op, "indices", *indices, {grouped ? rows.size(0) : -1, -1}, "[C, P]");
    check_same_device(op, "indices", *indices, "rows", rows);
  }
  check_int64_vector(op, "row_counts", row_counts, indices ? indices->size(0) : rows.size(0), "[C]");
  check_same_device(op, "row_counts", row_counts, "rows", rows);
}

}  // namespace dgcl
