#include <tuple>

#include "../ops/checks.h"
#include "binding.h"
#include "leading_rows_kernel.h"

namespace dgcl {
namespace {

std::tuple<Tensor, Tensor, Tensor> leading_rows_cuda(const Tensor& pixels, const Tensor& pixel_counts,
                                                     const Tensor& limits, int64_t size) {
  check_leading_rows(pixels, pixel_counts, limits, size);
  const OnDeviceOf device(pixels);
  Tensor keep_pixels, keep_counts, keep_limits, starts;
  LeadingRowsArguments a;
  a.pixels = values_of(pixels, keep_pixels);
  a.counts = values_of(pixel_counts, keep_counts);
  a.limits = values_of(limits, keep_limits);
  a.num_pixels = pixels.numel();
  a.num_classes = pixel_counts.numel();
  a.size = size;
  Tensor rows = torch::stable::new_empty(pixels, {size}), classes = torch::stable::new_empty(pixels, {size}),
         offsets = torch::stable::new_empty(pixels, {a.num_classes + 1});
  a.rows = static_cast<int64_t*>(rows.mutable_data_ptr());
  a.classes = static_cast<int64_t*>(classes.mutable_data_ptr());
  a.offsets = static_cast<int64_t*>(offsets.mutable_data_ptr());
  a.starts = nullptr;
  if (!blocks_sum(a.num_classes)) {
    starts = torch::stable::new_empty(pixels, {a.num_classes + 1});
    a.starts = static_cast<int64_t*>(starts.mutable_data_ptr());
  }
  check_launch("leading_rows", launch_leading_rows(a, device.stream()));
  return {rows, classes, offsets};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("leading_rows", TORCH_BOX(&dgcl::leading_rows_cuda));
}
