// The vectors of chosen pixels, copied as words of 2, 4, 8 or 16 bytes.
//
// A pixel that the maps do not have gives a row of ones in every bit, a NaN in each dtype: no access outside the
// maps, and nothing that could pass for a feature.
#include "compat.cuh"
#include "gather_rows_kernel.h"

namespace dgcl {

constexpr int kGatherThreads = 256;
constexpr int kGatherTile = 32;  // pixels, and channels, of a transposed tile
constexpr int kGatherWarps = kGatherThreads / kWarp;

template <typename Word>
__device__ __forceinline__ Word all_ones() {
  return static_cast<Word>(~Word{0});
}
template <>
__device__ __forceinline__ uint4 all_ones<uint4>() {
  return make_uint4(~0u, ~0u, ~0u, ~0u);
}

// Where the vector of pixel number p begins, in elements; -1 for a pixel that is none.
__device__ __forceinline__ int64_t pixel_offset(const GatherRowsArguments& a, int64_t p) {
  if (p < 0 || p >= a.num_images * a.area) return -1;
  const int64_t image = p / a.area;
  return image * a.image_stride + (p - image * a.area) * a.pixel_stride;
}

// Channels lie side by side: a warp copies a vector.
template <typename Word>
__global__ void __launch_bounds__(kGatherThreads) gather_rows_direct_kernel(GatherRowsArguments a) {
  const Word* maps = static_cast<const Word*>(a.maps);
  const int64_t i = own_warp<kGatherWarps>();
  if (i >= a.num_pixels) return;
  Word* row = static_cast<Word*>(a.rows) + i * a.dim;
  const int64_t from = pixel_offset(a, a.pixels[i]);
  for (int64_t d = threadIdx.x % kWarp; d < a.dim; d += kWarp) row[d] = from < 0 ? all_ones<Word>() : maps[from + d];
}

// Channels lie far apart: lanes read neighbours in the list of pixels, which often are neighbours in the map, and
// write neighbouring channels, by way of a tile that is one word wider than the warp, against bank conflicts. A block
// per tile, all tiles of 32 pixels one after the other.
template <typename Word>
__global__ void __launch_bounds__(kGatherThreads) gather_rows_transposed_kernel(GatherRowsArguments a) {
  DGCL_SHARED(Word, tile, [kGatherTile][kGatherTile + 1]);  // [channel][pixel]
  const Word* maps = static_cast<const Word*>(a.maps);
  Word* rows = static_cast<Word*>(a.rows);
  const int lane = threadIdx.x % kGatherTile, warp = threadIdx.x / kGatherTile;
  const int64_t channel_tiles = (a.dim + kGatherTile - 1) / kGatherTile;
  const int64_t pixel = blockIdx.x / channel_tiles * kGatherTile, channel = blockIdx.x % channel_tiles * kGatherTile;
  const bool exists = pixel + lane < a.num_pixels;
  const int64_t from = exists ? pixel_offset(a, a.pixels[pixel + lane]) : -1;
  for (int d = warp; d < kGatherTile && channel + d < a.dim; d += kGatherWarps)
    if (exists) tile[d][lane] = from < 0 ? all_ones<Word>() : maps[from + (channel + d) * a.channel_stride];
  __syncthreads();
  if (channel + lane >= a.dim) return;
  for (int i = warp; i < kGatherTile && pixel + i < a.num_pixels; i += kGatherWarps)
    rows[(pixel + i) * a.dim + channel + lane] = tile[lane][i];
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
namespace {

template <typename Word>
void launch_direct(const GatherRowsArguments& a, void* stream) {
  DGCL_LAUNCH(gather_rows_direct_kernel<Word>, blocks_for(a.num_pixels, kGatherWarps), dim3(kGatherThreads), 0, stream,
              a);
}

template <typename Word>
void launch_words(const GatherRowsArguments& a, void* stream) {
  if (a.channel_stride == 1 || a.dim == 1) return launch_direct<Word>(a, stream);
  const int64_t channel_tiles = (a.dim + kGatherTile - 1) / kGatherTile;
  const dim3 grid(static_cast<unsigned>((a.num_pixels + kGatherTile - 1) / kGatherTile * channel_tiles));
  DGCL_LAUNCH(gather_rows_transposed_kernel<Word>, grid, dim3(kGatherThreads), 0, stream, a);
}

// The same vectors in words of 16 bytes, where channels lie side by side and every vector is aligned.
bool widen(GatherRowsArguments& a) {
  const int64_t per_word = static_cast<int64_t>(sizeof(uint4)) / a.element_bytes;
  const uintptr_t bytes = reinterpret_cast<uintptr_t>(a.maps) | reinterpret_cast<uintptr_t>(a.rows);
  if (a.channel_stride != 1 || bytes % sizeof(uint4) != 0) return false;
  if ((a.dim | a.image_stride | a.pixel_stride) % per_word != 0) return false;
  a.dim /= per_word;
  a.image_stride /= per_word;
  a.pixel_stride /= per_word;
  return true;
}

}  // namespace

int launch_gather_rows(const GatherRowsArguments& arguments, void* stream) {
  GatherRowsArguments a = arguments;
  if (a.num_pixels == 0 || a.dim == 0) return 0;
  if (widen(a))
    launch_direct<uint4>(a, stream);
  else if (a.element_bytes == 8)
    launch_words<uint64_t>(a, stream);
  else if (a.element_bytes == 4)
    launch_words<uint32_t>(a, stream);
  else
    launch_words<uint16_t>(a, stream);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
