#include "density_contrast_kernel.cuh"

namespace dgcl {
namespace {

template <typename T>
void launch(const DensityContrastArguments& a, void* stream) {
  const ContrastProblem& p = a.problem;
  constexpr int64_t own = ContrastTile<T>::kOwn;
  const auto blocks = [](int64_t items, int64_t per_block) {
    return dim3(static_cast<unsigned>((items + per_block - 1) / per_block));
  };
  if (p.num_anchors > 0) {
    const int64_t rows = p.groups * (p.num_anchors + p.num_negatives + 1);
    DGCL_LAUNCH(contrast_unit_rows_kernel<T>, blocks(rows, kContrastWarps), dim3(kContrastThreads), 0, stream, p);
    const int64_t tiles = (p.num_anchors + own - 1) / own;
    DGCL_LAUNCH(density_contrast_kernel<T>, blocks(p.groups * tiles, 1), dim3(kContrastThreads), 0, stream, a);
  }
  DGCL_LAUNCH(density_contrast_mean_kernel<T>, blocks(p.groups, kContrastWarps), dim3(kContrastThreads), 0, stream, a);
}

}  // namespace

int launch_density_contrast(const DensityContrastArguments& a, void* stream) {
  if (a.problem.groups == 0) return 0;
  if (a.problem.is_double)
    launch<double>(a, stream);
  else
    launch<float>(a, stream);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace dgcl
