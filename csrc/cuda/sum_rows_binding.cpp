#include "../ops/checks.h"
#include "binding.h"
#include "sum_rows_kernel.h"

namespace dgcl {
namespace {

Tensor sum_rows_cuda(const Tensor& rows, std::optional<Tensor> indices, const Tensor& row_counts, bool in_float64) {
  check_sum_rows(rows, indices, row_counts);
  const OnDeviceOf device(rows);
  Tensor keep_rows, keep_indices, keep_counts;
  SumRowsArguments a;
  a.rows = row_view(rows, keep_rows);
  a.indices = values_of(indices, keep_indices);
  a.row_counts = values_of(row_counts, keep_counts);
  a.num_classes = row_counts.numel();
  a.num_rows = rows.size(rows.dim() - 2);
  a.width = indices ? indices->size(1) : a.num_rows;
  a.dim = rows.size(rows.dim() - 1);
  a.in_float64 = in_float64 || rows.scalar_type() == ScalarType::Double;
  Tensor sums =
      torch::stable::new_empty(rows, {a.num_classes, a.dim}, a.in_float64 ? ScalarType::Double : ScalarType::Float);
  a.sums = sums.mutable_data_ptr();
  check_launch("sum_rows", launch_sum_rows(a, device.stream()));
  return sums;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) { m.impl("sum_rows", TORCH_BOX(&dgcl::sum_rows_cuda)); }
