#include "density_contrast_kernel.cuh"

namespace dgcl {
namespace {

template <typename T>
void launch(const DensityContrastArguments& a, void* stream) {
  const ContrastProblem& p = a.problem;
  constexpr int64_t own = ContrastTile<T>::kOwn;
  if (p.num_anchors > 0) {
    const int64_t rows = p.groups * p.slots();
    DGCL_LAUNCH(contrast_unit_rows_kernel<T>, blocks_for(rows, kContrastWarps), dim3(kContrastThreads), 0, stream, p);
    const int64_t tiles = (p.num_anchors + own - 1) / own;
    DGCL_LAUNCH(density_contrast_kernel<T>, blocks_for(p.groups * tiles, 1), dim3(kContrastThreads), 0, stream, a);
  }
  DGCL_LAUNCH(density_contrast_mean_kernel<T>, blocks_for(p.groups, kContrastWarps), dim3(kContrastThreads), 0, stream,
              a);
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
