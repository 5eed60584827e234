// The only device-side file that differs between nvcc and g++ with the emulator of tests/. Kernels and launches include
// it and no other CUDA header. It uses nothing newer than sm_80.
#pragma once
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

// A static shared array: DGCL_SHARED(float, tile, [16][33]). `align` is in bytes, for vector access.
#define DGCL_SHARED_ALIGNED(align, type, name, dims) \
  __shared__ __align__(align)                        \
  type name dims
#define DGCL_SHARED(type, name, dims) __shared__ type name dims
// The dynamic shared memory of the launch, 16-byte aligned.
#define DGCL_DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(16) unsigned char dgcl_dynamic_smem[]; \
  type* name = reinterpret_cast<type*>(dgcl_dynamic_smem)
#define DGCL_LAUNCH(kernel, grid, block, smem, stream, ...) \
  (kernel)<<<(grid), (block), (smem), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

namespace dgcl {

// d = a b + c on tensor cores. a [16][16] and b [16][8] are float16, c and d [16][8] are float. Registers as in the
// PTX manual.
__device__ __forceinline__ void mma_f16_16x8x16(float* d, const uint32_t* a, const uint32_t* b, const float* c) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Copies `bytes` (0 to 16) from global to shared memory and pads with zeros to 16. Both addresses are multiples of 16.
// The data is available after the next pipeline wait.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, int bytes) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(bytes)
      : "memory");
}

// Reads a number that other threads may be changing by atomics.
__device__ __forceinline__ float load_relaxed(const float* p) { return *static_cast<const volatile float*>(p); }

// Vector access. The address must be a multiple of the vector's size.
template <typename Vector>
__device__ __forceinline__ Vector load_vector(const void* p) {
  return *static_cast<const Vector*>(p);
}
template <typename Vector>
__device__ __forceinline__ void store_vector(void* p, Vector v) {
  *static_cast<Vector*>(p) = v;
}

}  // namespace dgcl

#else
#include "cuda_emulator.h"

namespace dgcl {

inline void copy_async_16(void* to, const void* from, int bytes) { __pipeline_memcpy_async(to, from, 16, 16 - bytes); }
inline float load_relaxed(const float* p) {
  float value;
  __atomic_load(p, &value, __ATOMIC_RELAXED);
  return value;
}

}  // namespace dgcl
#endif

namespace dgcl {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// The calling warp's number in a grid of one-dimensional blocks of kWarpsPerBlock warps.
template <int kWarpsPerBlock>
__device__ __forceinline__ int64_t own_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}

// A one-dimensional grid for `work` items, `each` items per block.
inline dim3 blocks_for(int64_t work, int64_t each) { return dim3(static_cast<unsigned>((work + each - 1) / each)); }

// Two floats, rounded to float16 and packed into a register.
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
#if defined(__CUDACC__)
  const __half2 pair = __floats2half2_rn(low, high);
#else
  const __half pair[2] = {__float2half_rn(low), __float2half_rn(high)};
#endif
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

}  // namespace dgcl
