#include <tuple>

#include "../ops/checks.h"
#include "binding.h"
#include "class_table_kernel.h"

namespace dgcl {
namespace {

std::tuple<Tensor, Tensor> class_table_cuda(const Tensor& pixels, const Tensor& offsets,
                                            const std::optional<Tensor>& order, int64_t width, bool last) {
  check_class_table(pixels, offsets, order, width);
  const OnDeviceOf device(pixels);
  Tensor keep_pixels, keep_offsets, keep_order;
  ClassTableArguments a;
  a.pixels = values_of(pixels, keep_pixels);
  a.offsets = values_of(offsets, keep_offsets);
  a.order = values_of(order, keep_order);
  a.num_pixels = pixels.numel();
  a.num_classes = offsets.numel() - 1;
  a.width = width;
  a.last = last;
  Tensor entries = torch::stable::new_empty(pixels, {a.num_classes, width}),
         entry_pixels = torch::stable::new_empty(pixels, {a.num_classes, width});
  a.entries = static_cast<int64_t*>(entries.mutable_data_ptr());
  a.entry_pixels = static_cast<int64_t*>(entry_pixels.mutable_data_ptr());
  check_launch("class_table", launch_class_table(a, device.stream()));
  return {entries, entry_pixels};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("class_table", TORCH_BOX(&dgcl::class_table_cuda));
}
