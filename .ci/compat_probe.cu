// A kernel for each primitive of csrc/cuda/compat.cuh. The emulator replaces the primitives, so it cannot check nvcc's
// half of that file. compat_probe.py compares nvcc's PTX for these kernels with the PTX manual.
#include "compat.cuh"

namespace dgcl {

struct alignas(16) Doubles {
  double x[2];
};

extern "C" __global__ void probe_mma(float* d, const uint32_t* a, const uint32_t* b, const float* c) {
  float sum[4];
  const uint32_t left[4] = {a[0], a[1], a[2], a[3]}, right[2] = {b[0], b[1]};
  const float start[4] = {c[0], c[1], c[2], c[3]};
  mma_f16_16x8x16(sum, left, right, start);
  for (int i = 0; i < 4; ++i) d[i] = sum[i];
}

extern "C" __global__ void probe_pack(uint32_t* pair, float low, float high) { *pair = pack_half(low, high); }

// Two loads stay two.
extern "C" __global__ void probe_relaxed(float* values, const float* p) {
  values[0] = load_relaxed(p);
  values[1] = load_relaxed(p);
}

// A store before the copy stays before it, and a load after it is not answered from that store.
extern "C" __global__ void probe_copy(float* value, const void* from, int bytes, float old) {
  DGCL_SHARED_ALIGNED(16, float, copied, [4]);
  copied[0] = old;
  copy_async_16(copied, from, bytes);
  value[0] = copied[0];
}

extern "C" __global__ void probe_shared(float* value, float x) {
  DGCL_SHARED(float, kept, [1]);
  kept[0] = x;
  __syncthreads();
  value[0] = kept[0];
}

extern "C" __global__ void probe_dynamic(float* value) {
  DGCL_DYNAMIC_SHARED(float, dynamic);
  value[0] = dynamic[0];
}

extern "C" __global__ void probe_vectors(uint4* words, const uint4* from, Doubles* numbers,
                                         const Doubles* numbers_from) {
  store_vector(words, load_vector<uint4>(from));
  store_vector(numbers, load_vector<Doubles>(numbers_from));
}

void probe_launch(dim3 grid, dim3 block, size_t smem, void* stream, uint32_t* pair, float low, float high) {
  DGCL_LAUNCH(probe_pack, grid, block, smem, stream, pair, low, high);
}

}  // namespace dgcl
