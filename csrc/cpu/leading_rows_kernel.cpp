#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/counts.h"
#include "../ops/checks.h"

namespace dgcl {
namespace {

std::tuple<Tensor, Tensor, Tensor> leading_rows_cpu(const Tensor& pixels, const Tensor& pixel_counts,
                                                    const Tensor& limits, int64_t size) {
  const char* op = "leading_rows";
  check_leading_rows(pixels, pixel_counts, limits, size);
  const int64_t total = pixels.numel(), classes = pixel_counts.numel();
  const std::vector<int64_t> start = read_starts(op, pixel_counts, total),
                             limit = read_counts(op, "limits", limits, INT64_MAX);
  std::vector<int64_t> offset(1, 0);  // in the result
  for (size_t c = 0; c < limit.size(); ++c) offset.push_back(offset[c] + std::min(start[c + 1] - start[c], limit[c]));
  if (offset.back() > size) fail(op, "size must be at least the number of rows, ", offset.back(), ", got ", size);

  const Tensor dense = torch::stable::contiguous(pixels);
  const int64_t* pixel = static_cast<const int64_t*>(dense.const_data_ptr());
  Tensor rows = torch::stable::new_empty(pixels, {size}), row_classes = torch::stable::new_empty(pixels, {size}),
         offsets = torch::stable::new_empty(pixels, {classes + 1});
  int64_t* row = static_cast<int64_t*>(rows.mutable_data_ptr());
  int64_t* row_class = static_cast<int64_t*>(row_classes.mutable_data_ptr());
  std::copy(offset.begin(), offset.end(), static_cast<int64_t*>(offsets.mutable_data_ptr()));
  for (int64_t c = 0; c < classes; ++c) {
    const size_t at = static_cast<size_t>(c);
    std::copy_n(pixel + start[at], offset[at + 1] - offset[at], row + offset[at]);
    std::fill(row_class + offset[at], row_class + offset[at + 1], c);
  }
  for (int64_t i = offset.back(); i < size; ++i) row[i] = pixel[std::min(start.back() + i - offset.back(), total - 1)];
  std::fill(row_class + offset.back(), row_class + size, classes);
  return {rows, row_classes, offsets};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("leading_rows", TORCH_BOX(&dgcl::leading_rows_cpu)); }
