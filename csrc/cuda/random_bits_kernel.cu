// A thread per word. Each derives the key words from the state in device memory: six rounds of mixing cost less than a
// launch, and the host need not know the state.
#include "../math/random_bits.h"
#include "compat.cuh"
#include "random_bits_kernel.h"

namespace dgcl {

constexpr int kRandomThreads = 256;

__global__ void __launch_bounds__(kRandomThreads) random_bits_kernel(RandomBitsArguments a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRandomThreads + threadIdx.x;
  if (i >= a.count) return;
  const RandomKeys keys = random_keys(a.rng_state[0], a.rng_state[1], a.stream);
  a.bits[i] = random_word(keys, static_cast<uint32_t>(i));
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
int launch_random_bits(const RandomBitsArguments& a, void* stream) {
  if (a.count == 0) return 0;
  DGCL_LAUNCH(random_bits_kernel, blocks_for(a.count, kRandomThreads), dim3(kRandomThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
