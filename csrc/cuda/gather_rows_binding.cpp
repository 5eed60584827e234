#include <vector>

#include "../ops/checks.h"
#include "binding.h"
#include "gather_rows_kernel.h"

namespace dgcl {
namespace {

Tensor gather_rows_cuda(const Tensor& maps, const Tensor& pixels) {
  check_gather_rows(maps, pixels);
  const OnDeviceOf device(maps);
  const int64_t height = maps.size(2), width = maps.size(3);
  // One stride must cover all pixels. The stride of a single row or column is arbitrary.
  const bool rows_follow = height == 1 || width == 1 || maps.stride(2) == width * maps.stride(3);
  const Tensor dense = rows_follow ? maps : torch::stable::contiguous(maps),
               dense_pixels = torch::stable::contiguous(pixels);
  std::vector<int64_t> shape(pixels.sizes().begin(), pixels.sizes().end());
  shape.push_back(maps.size(1));
  Tensor rows = torch::stable::new_empty(maps, shape);
  GatherRowsArguments a;
  a.maps = dense.const_data_ptr();
  a.element_bytes = static_cast<int>(maps.element_size());
  a.num_images = maps.size(0);
  a.dim = maps.size(1);
  a.area = height * width;
  a.image_stride = dense.stride(0);
  a.channel_stride = dense.stride(1);
  a.pixel_stride = width == 1 ? dense.stride(2) : dense.stride(3);
  a.pixels = static_cast<const int64_t*>(dense_pixels.const_data_ptr());
  a.num_pixels = dense_pixels.numel();
  a.rows = rows.mutable_data_ptr();
  check_launch("gather_rows", launch_gather_rows(a, device.stream()));
  return rows;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("gather_rows", TORCH_BOX(&dgcl::gather_rows_cuda));
}
