#include <vector>

#include "../common/maps.h"
#include "../ops/checks.h"
#include "binding.h"
#include "gather_rows_kernel.h"

namespace dgcl {
namespace {

Tensor gather_rows_cuda(const Tensor& maps, const Tensor& pixels) {
  check_gather_rows(maps, pixels);
  const OnDeviceOf device(maps);
  const Tensor dense_pixels = torch::stable::contiguous(pixels);
  std::vector<int64_t> shape(pixels.sizes().begin(), pixels.sizes().end());
  shape.push_back(maps.size(1));
  Tensor rows = torch::stable::new_empty(maps, shape);
  GatherRowsArguments a;
  a.maps = maps.const_data_ptr();
  a.element_bytes = static_cast<int>(maps.element_size());
  a.layout = pixel_layout(maps, 1);
  a.map_pixels = count_pixels("gather_rows", "maps", maps.sizes(), 1);
  a.dim = maps.size(1);
  a.channel_stride = maps.stride(1);
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
