// Copies the vectors of chosen pixels in words of 2, 4, 8 or 16 bytes.
//
// A pixel outside the maps gives a row with every bit set, which is a NaN in each dtype. So nothing outside the maps is
// read, and no result can pass for a feature.
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

// Where the vector of pixel p begins, in elements. -1 for a pixel outside the maps.
__device__ __forceinline__ int64_t pixel_offset(const GatherRowsArguments& a, int64_t p) {
  return p < 0 || p >= a.map_pixels ? -1 : pixel_place(a.layout, p);
}

// Channels are contiguous: a warp copies a vector.
template <typename Word>
__global__ void __launch_bounds__(kGatherThreads) gather_rows_direct_kernel(GatherRowsArguments a) {
  const Word* maps = static_cast<const Word*>(a.maps);
  const int64_t i = own_warp<kGatherWarps>();
  if (i >= a.num_pixels) return;
  Word* row = static_cast<Word*>(a.rows) + i * a.dim;
  const int64_t from = pixel_offset(a, a.pixels[i]);
  for (int64_t d = threadIdx.x % kWarp; d < a.dim; d += kWarp) row[d] = from < 0 ? all_ones<Word>() : maps[from + d];
}

// Channels are far apart. Lanes read neighbours in the list of pixels, which often are neighbours in the map. They
// write neighbouring channels, by way of a tile. The tile is one word wider than the warp to avoid bank conflicts. Each
// tile has a block; all tiles of 32 pixels come one after another.
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

// Switches to words of 16 bytes, if channels are contiguous and every vector is aligned.
bool widen(GatherRowsArguments& a) {
  const int64_t per_word = static_cast<int64_t>(sizeof(uint4)) / a.element_bytes;
  const uintptr_t bytes = reinterpret_cast<uintptr_t>(a.maps) | reinterpret_cast<uintptr_t>(a.rows);
  if (a.channel_stride != 1 || bytes % sizeof(uint4) != 0) return false;
  if (a.dim % per_word != 0) return false;
  for (int i = 0; i < a.layout.sides; ++i)
    if (a.layout.strides[i] % per_word != 0) return false;
  a.dim /= per_word;
  for (int i = 0; i < a.layout.sides; ++i) a.layout.strides[i] /= per_word;
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
