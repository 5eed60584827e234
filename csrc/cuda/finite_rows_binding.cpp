#include "../common/maps.h"
#include "../ops/checks.h"
#include "binding.h"
#include "finite_rows_kernel.h"

namespace dgcl {
namespace {

uint64_t exponent_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return 0x7c00;
    case ScalarType::BFloat16:
      return 0x7f80;
    case ScalarType::Float:
      return 0x7f800000;
    default:
      return 0x7ff0000000000000;
  }
}

FiniteMaps finite_maps(const Tensor& t, bool has_channels) {
  FiniteMaps m;
  m.data = t.const_data_ptr();
  m.element_bytes = static_cast<int>(t.element_size());
  m.exponent = exponent_of(t.scalar_type());
  m.dim = has_channels ? t.size(1) : 1;
  m.channel_stride = has_channels ? t.stride(1) : 1;
  m.layout = pixel_layout(t, has_channels ? 1 : -1);
  return m;
}

Tensor finite_rows_cuda(const Tensor& maps, std::optional<Tensor> other_maps, std::optional<Tensor> confidence) {
  check_finite_rows(maps, other_maps, confidence);
  const OnDeviceOf device(maps);
  FiniteRowsArguments a;
  a.maps = finite_maps(maps, true);
  if (other_maps) a.other_maps = finite_maps(*other_maps, true);
  if (confidence) a.confidence = finite_maps(*confidence, false);
  a.num_pixels = count_pixels("finite_rows", "maps", maps.sizes(), 1);
  Tensor finite = torch::stable::new_empty(maps, {a.num_pixels}, ScalarType::Bool);
  a.finite = static_cast<bool*>(finite.mutable_data_ptr());
  check_launch("finite_rows", launch_finite_rows(a, device.stream()));
  return finite;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("finite_rows", TORCH_BOX(&dgcl::finite_rows_cuda));
}
