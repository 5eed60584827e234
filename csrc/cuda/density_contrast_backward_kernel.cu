// Gradients of the contrastive loss. The group's scale comes from contrast_gradient_scale (math/contrast.h), p_ij is
// recomputed from the logits and the saved lse, and a_i, n_j and k are unit rows:
//
//   dL/da_i = at_key_i k + sum_j scale p_ij n_j        dL/dn_j = sum_i scale p_ij a_i
//   dL/dk   = sum_i at_key_i a_i                       at_key_i = scale (p_i0 - 1)
//
// One block sums each row, in one order. A warp per row then turns the sum into the gradient of the raw row.
#include "contrast_tile.cuh"
#include "density_contrast_backward_kernel.h"

namespace dgcl {

// Sizes of the gradient kernel's second product: weights times rows.
template <typename T>
struct GradientTile : ContrastTile<T> {
  using Base = ContrastTile<T>;
  static constexpr int kVectorsPerLane = 2;
  static constexpr int kColumns = kWarp * kVectorsPerLane * Base::kVector;  // of the gradient, computed by one block
  static constexpr int kRows = 8;                                           // per step
  static constexpr int kSumStage = kRows * kColumns;
  static constexpr int kSumRowVectors = kColumns / Base::kVector;
  static constexpr int kSumRowsPerCopy = kContrastThreads / kSumRowVectors;
  static constexpr int kShared = 2 * (kSumStage > Base::kStage ? kSumStage : Base::kStage);
  static_assert(Base::kOthers % kRows == 0 && kRows % Base::kVector == 0 && kRows % kSumRowsPerCopy == 0);
};

// A warp per anchor.
template <typename T>
__global__ void __launch_bounds__(kContrastThreads) contrast_anchor_kernel(DensityContrastBackwardArguments a) {
  const ContrastProblem& p = a.problem;
  const int64_t item = own_warp<kContrastWarps>();
  const int64_t group = item / p.num_anchors, anchor = item % p.num_anchors;
  if (group >= p.groups) return;
  const int64_t count = contrast_count(p.anchor_counts, group, p.num_anchors);
  if (anchor >= count) return;
  const double logit = key_logit<T>(p, group, anchor), lse = static_cast<const T*>(a.lse)[item];
  const double scale =
      contrast_gradient_scale(static_cast<const T*>(a.dL_dloss)[group], static_cast<double>(count), p.temperature);
  if (threadIdx.x % kWarp != 0) return;
  a.at_keys[item] = scale * (contrast_probability(logit, lse) - 1);
}

// What is summed over the other rows for the unit gradient of an own row. Own rows are the anchors, with the negatives
// as other rows. Or own rows are the used negatives, followed by the key, with the anchors as other rows.
template <typename T, bool kOwnAnchors>
struct GradientSide {
  const DensityContrastBackwardArguments& a;
  int64_t group, anchor_count, negative_count;
  double scale;

  __device__ GradientSide(const DensityContrastBackwardArguments& arguments, int64_t group_)
      : a(arguments),
        group(group_),
        anchor_count(contrast_count(a.problem.anchor_counts, group_, a.problem.num_anchors)),
        negative_count(contrast_count(a.problem.negative_counts, group_, a.problem.num_negatives)),
        scale(contrast_gradient_scale(static_cast<const T*>(a.dL_dloss)[group_], static_cast<double>(anchor_count),
                                      a.problem.temperature)) {}

  __device__ int64_t own_count() const { return kOwnAnchors ? anchor_count : negative_count + 1; }
  __device__ bool is_key(int64_t row) const { return !kOwnAnchors && row == negative_count; }
  __device__ const T* own_unit(int64_t row) const {
    const int64_t negative = is_key(row) ? a.problem.num_negatives : row;
    return unit_row_of<T>(a.problem, group, kOwnAnchors ? row : a.problem.num_anchors + negative);
  }
  __device__ T* own_gradient(int64_t row) const {
    const ContrastProblem& p = a.problem;
    if (kOwnAnchors) return static_cast<T*>(a.anchors.unit) + (group * p.num_anchors + row) * p.dim;
    if (is_key(row)) return static_cast<T*>(a.keys.unit) + group * p.dim;
    return static_cast<T*>(a.negatives.unit) + (group * p.num_negatives + row) * p.dim;
  }
  __device__ OtherRows<T> others() const {
    return {unit_row_of<T>(a.problem, group, kOwnAnchors ? a.problem.num_anchors : 0),
            kOwnAnchors ? negative_count : anchor_count};
  }
  // dL / d<own, other>
  __device__ T weight(int64_t own, int64_t other, T product) const {
    const int64_t anchor = group * a.problem.num_anchors + (kOwnAnchors ? own : other);
    if (is_key(own)) return static_cast<T>(a.at_keys[anchor]);
    const double logit = contrast_logit(product, a.problem.temperature, a.problem.inverse_temperature);
    return static_cast<T>(scale * contrast_probability(logit, static_cast<const T*>(a.lse)[anchor]));
  }
};

// A block per group, kOwn own rows and kColumns columns of their unit gradients. With more than kColumns columns, each
// further block recomputes the products. That costs more than one pass, and less than storing them.
template <typename T, bool kOwnAnchors>
__global__ void __launch_bounds__(kContrastThreads, kContrastBlocks)
    contrast_gradient_kernel(DensityContrastBackwardArguments a, int64_t tiles, int column_blocks) {
  using Tile = GradientTile<T>;
  constexpr int kOwnPerWarp = Tile::kOwnPerWarp, kVector = Tile::kVector;
  DGCL_SHARED_ALIGNED(16, T, stages, [Tile::kShared]);
  DGCL_SHARED_ALIGNED(16, T, tile_weights, [Tile::kOwn * Tile::kOthers]);
  const int64_t group = blockIdx.x / (tiles * column_blocks), item = blockIdx.x % (tiles * column_blocks);
  const int64_t first = item / column_blocks * Tile::kOwn;
  const int first_column = static_cast<int>(item % column_blocks) * Tile::kColumns;
  const GradientSide<T, kOwnAnchors> side(a, group);
  const int64_t count = side.own_count();
  const int pitch = a.problem.unit_pitch;
  if (first >= count) return;

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t copied = first + threadIdx.x / Tile::kRowVectors, mine = first + warp * kOwnPerWarp;
  const T* own = side.own_unit(copied);
  const int column = first_column + lane * kVector;  // the next vector is kWarp * kVector further
  T gradient[kOwnPerWarp][Tile::kVectorsPerLane][kVector];
  const T* key = unit_row_of<T>(a.problem, group, a.problem.slots() - 1);
#pragma unroll
  for (int r = 0; r < kOwnPerWarp; ++r) {
    const bool starts = kOwnAnchors && mine + r < count;
    const T at_key = starts ? static_cast<T>(a.at_keys[group * a.problem.num_anchors + mine + r]) : T(0);
#pragma unroll
    for (int v = 0; v < Tile::kVectorsPerLane; ++v)
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const int d = column + v * kWarp * kVector + i;
        gradient[r][v][i] = starts && d < pitch ? at_key * key[d] : T(0);
      }
  }

  T* weights = tile_weights + warp * kOwnPerWarp * Tile::kOthers;
  OtherRows<T> others = side.others();
  for (int64_t passed = 0; others.left > 0; others.advance(pitch), passed += Tile::kOthers) {
    // 1. Products, replaced by dL / d<own, other>.
    multiply_tile(own, copied < count, others, pitch, stages, weights);
    const int rows = others.count();
#pragma unroll 1
    for (int j = lane; j < Tile::kOthers; j += kWarp)
#pragma unroll
      for (int r = 0; r < kOwnPerWarp; ++r) {
        T& weight = weights[r * Tile::kOthers + j];
        weight = j < rows && mine + r < count ? side.weight(mine + r, passed + j, weight) : T(0);
      }
    // 2. Their product with the other rows, kRows rows at a time. The weights are read after the pipeline's first
    // barrier.
    const auto load = [&](int step, int stage) {
      const int to_row = threadIdx.x / Tile::kSumRowVectors, to_column = threadIdx.x % Tile::kSumRowVectors * kVector;
      const int row = step * Tile::kRows + to_row, from_column = first_column + to_column;
      const T* from = others.rows + static_cast<int64_t>(row) * pitch + from_column;
      T* to = stages + stage * Tile::kSumStage + to_row * Tile::kColumns + to_column;
#pragma unroll
      for (int i = 0; i < Tile::kRows; i += Tile::kSumRowsPerCopy)
        copy_vector(to + i * Tile::kColumns, from + static_cast<int64_t>(i) * pitch,
                    row + i < rows && from_column < pitch);
    };
    const auto use = [&](int step, int stage) {
      const T* tile = stages + stage * Tile::kSumStage + lane * kVector;
#pragma unroll
      for (int k = 0; k < Tile::kRows; k += kVector) {
        ContrastVector<T> weight[kOwnPerWarp];
#pragma unroll
        for (int r = 0; r < kOwnPerWarp; ++r)
          weight[r] = shared_vector(weights + r * Tile::kOthers + step * Tile::kRows + k);
#pragma unroll
        for (int j = 0; j < kVector; ++j)
#pragma unroll
          for (int v = 0; v < Tile::kVectorsPerLane; ++v) {
            const ContrastVector<T> row = shared_vector(tile + (k + j) * Tile::kColumns + v * kWarp * kVector);
#pragma unroll
            for (int r = 0; r < kOwnPerWarp; ++r)
#pragma unroll
              for (int i = 0; i < kVector; ++i) gradient[r][v][i] = fma(weight[r].x[j], row.x[i], gradient[r][v][i]);
          }
      }
    };
    pipelined((rows + Tile::kRows - 1) / Tile::kRows, load, use);
  }

#pragma unroll
  for (int r = 0; r < kOwnPerWarp; ++r) {
    if (mine + r >= count) break;
    T* out = side.own_gradient(mine + r);
#pragma unroll
    for (int v = 0; v < Tile::kVectorsPerLane; ++v)
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const int d = column + v * kWarp * kVector + i;
        if (d < a.problem.dim) out[d] = gradient[r][v][i];
      }
  }
}

// A warp per row turns the gradient of the unit row into that of the raw row. Unused rows get 0.
template <typename T>
__global__ void __launch_bounds__(kContrastThreads) contrast_finish_kernel(DensityContrastBackwardArguments a) {
  const ContrastProblem& p = a.problem;
  const int64_t slots = a.needs_key_grad ? p.slots() : p.num_anchors;
  const int64_t item = own_warp<kContrastWarps>();
  const int64_t group = item / slots, slot = item % slots;
  if (group >= p.groups) return;
  GradientOut to = a.keys;
  int64_t row = group;
  if (slot < p.num_anchors) {
    to = a.anchors;
    row = group * p.num_anchors + slot;
  } else if (slot < p.num_anchors + p.num_negatives) {
    to = a.negatives;
    row = group * p.num_negatives + slot - p.num_anchors;
  }
  if (!contrast_is_used(p, group, slot)) return store_zeros<T>(p.dim, to.raw, to.dtype, row);
  const RowNorm<T> norm = warp_row_norm<T>(contrast_row<T>(p, group, slot), p.dim);
  // A lane reads and writes the same elements, so both gradients may share their memory.
  const T *u = unit_row_of<T>(p, group, slot), *g = static_cast<const T*>(to.unit) + row * p.dim;
  store_raw_gradient([&](int64_t d) { return g[d]; }, [&](int64_t d) { return u[d]; }, norm, p.dim, to.raw, to.dtype,
                     row);
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
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
  if (a.needs_key_grad) launch_gradient<T, false>(a, p.num_negatives + 1, stream);
  const int64_t finished = a.needs_key_grad ? p.groups * slots : anchors;
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
#endif

}  // namespace dgcl
