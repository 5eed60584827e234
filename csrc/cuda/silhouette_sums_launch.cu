#include "silhouette_sums_kernel.cuh"

namespace dgcl {
namespace {

// For the largest devices. With fewer tiles of rows, the classes are shared out.
constexpr int64_t kEnoughBlocks = 1024;

}  // namespace

int launch_silhouette_sums(const SilhouetteSumsArguments& a, void* stream) {
  if (a.num_rows == 0 || a.num_classes == 0) return 0;
  const int64_t tiles = (a.num_rows + kPairTile - 1) / kPairTile, shares = (kEnoughBlocks + tiles - 1) / tiles;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(shares < a.num_classes ? shares : a.num_classes));
  DGCL_LAUNCH(silhouette_sums_kernel, grid, dim3(kPairThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace dgcl
