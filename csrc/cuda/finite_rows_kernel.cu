// Which pixels hold no inf or NaN. Both have an exponent with every bit set, so numbers are compared as words.
//
// A block has 32 neighbouring pixels, and reads all maps. If the channels of a map are far apart, a lane has a pixel and
// the warps share the channels. If they are contiguous, a warp has a pixel at a time and the lanes share the channels.
// Either way lane i of a warp knows what the warp found in pixel i, and a vote puts it into one word.
#include "compat.cuh"
#include "finite_rows_kernel.h"

namespace dgcl {

constexpr int kFiniteThreads = 256;
constexpr int kFiniteWarps = kFiniteThreads / kWarp;

template <typename Word>
__device__ __forceinline__ bool is_special(Word word, uint64_t exponent) {
  return (word & static_cast<Word>(exponent)) == static_cast<Word>(exponent);
}

// The same for any of the words in a vector.
template <typename Word>
__device__ __forceinline__ bool has_special(uint4 v, uint64_t exponent) {
  const uint32_t parts[4] = {v.x, v.y, v.z, v.w};
  bool found = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(Word) == 2)
      found |= is_special<uint16_t>(static_cast<uint16_t>(parts[i]), exponent) ||
               is_special<uint16_t>(static_cast<uint16_t>(parts[i] >> 16), exponent);
    else if constexpr (sizeof(Word) == 4)
      found |= is_special<uint32_t>(parts[i], exponent);
    else if (i % 2)  // the exponent is in the high half
      found |= is_special<uint32_t>(parts[i], exponent >> 32);
  }
  return found;
}

// Whether pixel `first` + lane, at `place`, is special in the part of the map that the calling warp reads.
template <typename Word>
__device__ __forceinline__ bool warp_finds(const FiniteMaps& m, int64_t place, int64_t first, int64_t num_pixels) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Word* data = static_cast<const Word*>(m.data);
  bool mine = false;
  if (m.channel_stride != 1 || m.dim == 1) {
    if (first + lane >= num_pixels) return false;
    const Word* pixel = data + place;
#pragma unroll 8
    for (int64_t d = warp; d < m.dim; d += kFiniteWarps) mine |= is_special(pixel[d * m.channel_stride], m.exponent);
    return mine;
  }
  for (int i = warp; i < kWarp && first + i < num_pixels; i += kFiniteWarps) {
    const Word* pixel = data + __shfl_sync(kFullWarp, place, i);
    bool found = false;
    if (m.vectors) {
      constexpr int kPerVector = sizeof(uint4) / sizeof(Word);
      for (int64_t d = lane * kPerVector; d < m.dim; d += kWarp * kPerVector)
        found |= has_special<Word>(load_vector<uint4>(pixel + d), m.exponent);
    } else {
#pragma unroll 4
      for (int64_t d = lane; d < m.dim; d += kWarp) found |= is_special(pixel[d], m.exponent);
    }
    found = __any_sync(kFullWarp, found);
    mine |= found && lane == i;
  }
  return mine;
}

__device__ __forceinline__ bool warp_finds_any(const FiniteMaps& m, int64_t first, int64_t num_pixels) {
  const int64_t place = pixel_place(m.layout, first + threadIdx.x % kWarp);  // of no pixel in the last lanes
  if (m.element_bytes == 8) return warp_finds<uint64_t>(m, place, first, num_pixels);
  if (m.element_bytes == 4) return warp_finds<uint32_t>(m, place, first, num_pixels);
  return warp_finds<uint16_t>(m, place, first, num_pixels);
}

__global__ void __launch_bounds__(kFiniteThreads) finite_rows_kernel(FiniteRowsArguments a) {
  DGCL_SHARED(unsigned, found_by, [kFiniteWarps]);  // a bit for each pixel
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t num_pixels = a.num_pixels, first = static_cast<int64_t>(blockIdx.x) * kWarp;
  bool found = warp_finds_any(a.maps, first, num_pixels);
  found |= warp_finds_any(a.other_maps, first, num_pixels);
  found |= warp_finds_any(a.confidence, first, num_pixels);
  const unsigned bits = __ballot_sync(kFullWarp, found);
  if (lane == 0) found_by[warp] = bits;
  __syncthreads();
  if (warp > 0 || first + lane >= num_pixels) return;
  unsigned any = 0;
#pragma unroll
  for (int w = 0; w < kFiniteWarps; ++w) any |= found_by[w];
  a.finite[first + lane] = !(any >> lane & 1u);
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
namespace {

bool has_vectors(const FiniteMaps& m) {
  const int64_t per_vector = static_cast<int64_t>(sizeof(uint4)) / m.element_bytes;
  for (int i = 0; i < m.layout.sides; ++i)
    if (m.layout.strides[i] % per_vector != 0) return false;
  return reinterpret_cast<uintptr_t>(m.data) % sizeof(uint4) == 0 && m.dim % per_vector == 0;
}

}  // namespace

int launch_finite_rows(const FiniteRowsArguments& arguments, void* stream) {
  FiniteRowsArguments a = arguments;
  if (a.num_pixels == 0) return 0;
  for (FiniteMaps* m : {&a.maps, &a.other_maps}) m->vectors = has_vectors(*m);
  DGCL_LAUNCH(finite_rows_kernel, blocks_for(a.num_pixels, kWarp), dim3(kFiniteThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
