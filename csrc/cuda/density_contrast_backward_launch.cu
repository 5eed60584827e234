#include "density_contrast_backward_kernel.cuh"

namespace dgcl {
namespace {

template <typename T, bool kOwnAnchors>
void launch_gradient(const DensityContrastBackwardArguments& a, int64_t rows, void* stream) {
  using Tile = GradientTile<T>;
  const int64_t tiles = (rows + Tile::kOwn - 1) / Tile::kOwn;
  const int column_blocks = (a.problem.unit_pitch + Tile::kColumns - 1) / Tile::kColumns;
  DGCL_LAUNCH((contrast_gradient_kernel<T, kOwnAnchors>), blocks_for(a.problem.groups * tiles * column_blocks, 1),
              dim3(kContrastThreads), 0, stream, a, tiles, column_blocks);
}

template <typename T>
void launch(const DensityContrastBackwardArguments& a, void* stream) {
  const ContrastProblem& p = a.problem;
  const int64_t slots = p.slots(), anchors = p.groups * p.num_anchors;
  const dim3 threads(kContrastThreads);
  DGCL_LAUNCH(contrast_unit_rows_kernel<T>, blocks_for(p.groups * slots, kContrastWarps), threads, 0, stream, p);
  if (anchors > 0) {
    DGCL_LAUNCH(contrast_anchor_kernel<T>, blocks_for(anchors, kContrastWarps), threads, 0, stream, a);
    launch_gradient<T, true>(a, p.num_anchors, stream);
  }
  if (a.all_gradients) launch_gradient<T, false>(a, p.num_negatives + 1, stream);
  const int64_t finished = a.all_gradients ? p.groups * slots : anchors;
  if (finished > 0) DGCL_LAUNCH(contrast_finish_kernel<T>, blocks_for(finished, kContrastWarps), threads, 0, stream, a);
}

}  // namespace

int launch_density_contrast_backward(const DensityContrastBackwardArguments& a, void* stream) {
  if (a.problem.groups == 0 || a.problem.dim == 0) return 0;
  if (a.problem.is_double)
    launch<double>(a, stream);
  else
    launch<float>(a, stream);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace dgcl
