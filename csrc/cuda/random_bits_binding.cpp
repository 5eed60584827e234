#include "../ops/checks.h"
#include "binding.h"
#include "random_bits_kernel.h"

namespace dgcl {
namespace {

Tensor random_bits_cuda(const Tensor& rng_state, int64_t stream, int64_t count) {
  check_random_bits(rng_state, count);
  const OnDeviceOf device(rng_state);
  const Tensor state = torch::stable::contiguous(rng_state);
  Tensor bits = torch::stable::new_empty(rng_state, {count}, ScalarType::Long);
  RandomBitsArguments a;
  a.rng_state = static_cast<const int64_t*>(state.const_data_ptr());
  a.stream = stream;
  a.count = count;
  a.bits = static_cast<int64_t*>(bits.mutable_data_ptr());
  check_launch("random_bits", launch_random_bits(a, device.stream()));
  return bits;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("random_bits", TORCH_BOX(&dgcl::random_bits_cuda));
}
