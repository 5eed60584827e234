// The contrastive loss. Logits are computed tile by tile and go straight into the log-sum-exp of their anchor. None is
// stored.
#include "contrast_tile.cuh"

namespace dgcl {

// A block per group and kOwn anchors. Each warp has kOwnPerWarp of them, and each lane takes part of the negatives.
template <typename T>
__global__ void __launch_bounds__(kContrastThreads, kContrastBlocks)
    density_contrast_kernel(DensityContrastArguments a) {
  using Tile = ContrastTile<T>;
  DGCL_SHARED_ALIGNED(16, T, stages, [2 * Tile::kStage]);
  DGCL_SHARED(T, tile_products, [Tile::kOwn * Tile::kOthers]);
  const ContrastProblem& p = a.problem;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t tiles = (p.num_anchors + Tile::kOwn - 1) / Tile::kOwn;
  const int64_t group = blockIdx.x / tiles, first = blockIdx.x % tiles * Tile::kOwn;
  const int64_t count = contrast_count(p.anchor_counts, group, p.num_anchors);
  T* lse = static_cast<T*>(a.lse) + group * p.num_anchors;
  if (threadIdx.x < Tile::kOwn && first + threadIdx.x >= count && first + threadIdx.x < p.num_anchors)
    lse[first + threadIdx.x] = 0;
  if (first >= count) return;

  const int64_t copied = first + threadIdx.x / Tile::kRowVectors, mine = first + warp * Tile::kOwnPerWarp;
  const T* own = unit_row_of<T>(p, group, copied);
  OtherRows<T> negatives{unit_row_of<T>(p, group, p.num_anchors),
                         contrast_count(p.negative_counts, group, p.num_negatives)};
  T* products = tile_products + warp * Tile::kOwnPerWarp * Tile::kOthers;
  LogSumExp total[Tile::kOwnPerWarp];
  for (; negatives.left > 0; negatives.advance(p.unit_pitch)) {
    multiply_tile(own, copied < count, negatives, p.unit_pitch, stages, products);
#pragma unroll 1
    for (int j = lane; j < negatives.count(); j += kWarp)
#pragma unroll
      for (int r = 0; r < Tile::kOwnPerWarp; ++r)
        total[r].add(contrast_logit(products[r * Tile::kOthers + j], p.temperature, p.inverse_temperature));
  }
#pragma unroll
  for (int r = 0; r < Tile::kOwnPerWarp; ++r) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      LogSumExp other;
      other.maximum = __shfl_xor_sync(kFullWarp, total[r].maximum, step);
      other.sum = __shfl_xor_sync(kFullWarp, total[r].sum, step);
      total[r].merge(other);
    }
    if (mine + r >= count) continue;
    const double at_key = key_logit<T>(p, group, mine + r);
    total[r].add(at_key);
    if (lane != 0) continue;
    const double value = total[r].value(a.eps);
    lse[mine + r] = static_cast<T>(value);
    a.terms[group * p.num_anchors + mine + r] = contrast_loss(at_key, value);
  }
}

// A warp per group: the mean of its anchors' losses, in the fixed order of the canonical sum.
template <typename T>
__global__ void __launch_bounds__(kContrastThreads) density_contrast_mean_kernel(DensityContrastArguments a) {
  const ContrastProblem& p = a.problem;
  const int64_t group = own_warp<kContrastWarps>();
  if (group >= p.groups) return;
  const int64_t count = contrast_count(p.anchor_counts, group, p.num_anchors);
  double sum = 0;
  for (int64_t i = threadIdx.x % kWarp; i < count; i += kWarp) sum += a.terms[group * p.num_anchors + i];
  sum = warp_reduce_sum(sum);
  if (threadIdx.x % kWarp == 0)
    static_cast<T*>(a.loss)[group] = count > 0 ? static_cast<T>(sum / static_cast<double>(count)) : T(0);
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
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
#endif

}  // namespace dgcl
