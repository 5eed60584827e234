#include "gather_rows_kernel.cuh"

namespace dgcl {
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

}  // namespace dgcl
