#include <tuple>

#include "../ops/checks.h"
#include "binding.h"
#include "draw_negatives_kernel.h"

namespace dgcl {
namespace {

std::tuple<Tensor, Tensor> draw_negatives_cuda(const Tensor& pixels, const Tensor& pixel_counts, const Tensor& bits) {
  check_draw_negatives(pixels, pixel_counts, bits);
  const OnDeviceOf device(pixels);
  Tensor keep_pixels, keep_counts, keep_bits;
  DrawNegativesArguments a;
  a.pixels = values_of(pixels, keep_pixels);
  a.counts = values_of(pixel_counts, keep_counts);
  a.bits = values_of(bits, keep_bits);
  a.num_pixels = pixels.numel();
  a.num_classes = bits.size(0);
  a.limit = bits.size(1);
  Tensor negatives = torch::stable::new_empty(pixels, {a.num_classes, a.limit}),
         counts = torch::stable::new_empty(pixels, {a.num_classes});
  a.negatives = static_cast<int64_t*>(negatives.mutable_data_ptr());
  a.negative_counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  check_launch("draw_negatives", launch_draw_negatives(a, device.stream()));
  return {negatives, counts};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("draw_negatives", TORCH_BOX(&dgcl::draw_negatives_cuda));
}
