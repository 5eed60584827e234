#include <vector>

#include "../common/maps.h"
#include "../ops/checks.h"
#include "binding.h"
#include "gather_rows_backward_kernel.h"

namespace dgcl {
namespace {

Tensor gather_rows_backward_cuda(const Tensor& dL_drows, const Tensor& pixels, std::vector<int64_t> shape) {
  check_gather_rows_backward(dL_drows, pixels, shape);
  const OnDeviceOf device(dL_drows);
  const Tensor rows = torch::stable::contiguous(dL_drows), dense_pixels = torch::stable::contiguous(pixels);
  Tensor dL_dmaps = torch::stable::new_zeros(dL_drows, shape);
  if (rows.numel() == 0 || dL_dmaps.numel() == 0) return dL_dmaps;
  GatherRowsBackwardArguments a;
  a.dL_drows = rows.const_data_ptr();
  a.dtype = dtype_of(rows);
  a.pixels = static_cast<const int64_t*>(dense_pixels.const_data_ptr());
  a.num_rows = dense_pixels.numel();
  a.num_images = shape[0];
  a.dim = shape[1];
  const int64_t num_pixels = count_pixels("gather_rows_backward", "shape", shape, 1);
  a.area = num_pixels / a.num_images;
  Tensor owners = torch::stable::new_empty(dL_drows, {2, num_pixels}, ScalarType::Int);
  torch::stable::fill_(owners, -1);
  a.highest = static_cast<int32_t*>(owners.mutable_data_ptr());
  a.lowest = reinterpret_cast<uint32_t*>(a.highest + num_pixels);
  a.dL_dmaps = dL_dmaps.mutable_data_ptr();
  check_launch("gather_rows_backward", launch_gather_rows_backward(a, device.stream()));
  return dL_dmaps;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("gather_rows_backward", TORCH_BOX(&dgcl::gather_rows_backward_cuda));
}
