// What the kernels of the contrastive loss share: unit rows, and products of a tile of rows with a stream of rows.
//
// Unit rows are written once, to scratch memory in the compute type, padded with zeros. So every later read is an
// aligned 16-byte cp.async, whatever the inputs' dtypes, strides and lengths. The CPU multiplies unit rows of the same
// bits.
#pragma once
#include "../math/contrast.h"
#include "density_contrast_kernel.h"
#include "rows.cuh"

namespace dgcl {

constexpr int kContrastThreads = 128;
constexpr int kContrastWarps = kContrastThreads / kWarp;
constexpr int kContrastBlocks = 3;  // per multiprocessor, which leaves 168 registers per thread
constexpr int kVectorBytes = 16;    // of one cp.async

// Sizes of a tile in rows and elements. In bytes they are the same for float and double.
template <typename T>
struct ContrastTile {
  static constexpr int kVector = kVectorBytes / sizeof(T);
  static constexpr int kOwn = 16;  // rows per block
  static constexpr int kOwnPerWarp = kOwn / kContrastWarps;
  static constexpr int kOthersPerLane = 16 / sizeof(T);
  static constexpr int kOthers = kWarp * kOthersPerLane;  // streamed rows per step
  static constexpr int kRowVectors = 4;                   // of one row per step
  static constexpr int kDepth = kRowVectors * kVector;    // columns of a step
  // One extra vector, so that lanes that read neighbouring rows use different banks.
  static constexpr int kPitch = kDepth + kVector;
  static constexpr int kStage = (kOwn + kOthers) * kPitch;  // elements of shared memory
  static constexpr int kRowsPerCopy = kContrastThreads / kRowVectors;
  static_assert(kOwn <= kRowsPerCopy && kOthers % kRowsPerCopy == 0);
};

template <typename T>
struct alignas(kVectorBytes) ContrastVector {
  T x[kVectorBytes / sizeof(T)];
};

template <typename T>
__device__ __forceinline__ ContrastVector<T> shared_vector(const T* p) {
  return load_vector<ContrastVector<T>>(p);
}

__device__ __forceinline__ int64_t contrast_count(const int64_t* counts, int64_t group, int64_t capacity) {
  return counts == nullptr ? capacity : clamped(counts[group], capacity);
}

template <typename T>
__device__ __forceinline__ RowReader<T> contrast_row(const ContrastProblem& p, int64_t group, int64_t slot) {
  if (slot < p.num_anchors) return RowReader<T>(p.anchors, slot, group);
  slot -= p.num_anchors;
  return slot < p.num_negatives ? RowReader<T>(p.negatives, slot, group) : RowReader<T>(p.keys, 0, group);
}

// Whether this slot is in use, given the counts. Unused rows may hold anything, and are not read.
__device__ __forceinline__ bool contrast_is_used(const ContrastProblem& p, int64_t group, int64_t slot) {
  if (slot < p.num_anchors) return slot < contrast_count(p.anchor_counts, group, p.num_anchors);
  slot -= p.num_anchors;
  return slot == p.num_negatives || slot < contrast_count(p.negative_counts, group, p.num_negatives);
}

template <typename T>
__device__ __forceinline__ T* unit_row_of(const ContrastProblem& p, int64_t group, int64_t slot) {
  return static_cast<T*>(p.unit_rows) + (group * p.slots() + slot) * p.unit_pitch;
}

// A warp per slot. The unit rows of unused slots stay unset.
template <typename T>
__global__ void __launch_bounds__(kContrastThreads) contrast_unit_rows_kernel(ContrastProblem p) {
  const int64_t item = own_warp<kContrastWarps>();
  const int64_t group = item / p.slots(), slot = item % p.slots();
  if (group >= p.groups || !contrast_is_used(p, group, slot)) return;
  const RowReader<T> x = contrast_row<T>(p, group, slot);
  const RowNorm<T> norm = warp_row_norm<T>(x, p.dim);
  T* unit = unit_row_of<T>(p, group, slot);
  for (int64_t d = threadIdx.x % kWarp; d < p.unit_pitch; d += kWarp)
    unit[d] = d < p.dim ? unit_element(x(d), norm) : T(0);
}

// Copies one vector to shared memory; it is there after the next wait for the pipeline. Writes zeros if it is not used.
template <typename T>
__device__ __forceinline__ void copy_vector(T* to, const T* from, bool used) {
  if (used)
    copy_async_16(to, from, kVectorBytes);
  else
    store_vector(to, ContrastVector<T>{});
}

// Double-buffered steps. load(step, stage) starts copies into stage 0 or 1; use(step, stage) works on them while the
// next copies run. All threads of the block call this. It ends when all of them are past their last use.
template <typename Load, typename Use>
__device__ __forceinline__ void pipelined(int steps, const Load& load, const Use& use) {
  if (steps > 0) load(0, 0);
  __pipeline_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load(step + 1, (step + 1) % 2);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    use(step, step % 2);
    __syncthreads();
  }
}

// A stream of unit rows, kOthers at a time.
template <typename T>
struct OtherRows {
  const T* rows;  // first of the current rows, each one pitch long
  int64_t left;   // rows from there on

  __device__ void advance(int64_t pitch) {
    rows += ContrastTile<T>::kOthers * pitch;
    left -= ContrastTile<T>::kOthers;
  }
  __device__ int count() const {
    return static_cast<int>(left < ContrastTile<T>::kOthers ? left : ContrastTile<T>::kOthers);
  }
};

// products [kOwnPerWarp][kOthers] of this warp: <own row warp * kOwnPerWarp + r, other row j>, and 0 for unused rows.
// Lane l writes j = l, l + 32, ... and may read them at once. `own` is the own row that this thread copies, number
// threadIdx.x / kRowVectors; it is not read unless `own_used`. `stages` [2 * kStage]. Called by the whole block.
//
// The products go to shared memory, because what is computed from them needs the registers.
template <typename T>
__device__ __forceinline__ void multiply_tile(const T* own, bool own_used, const OtherRows<T>& others, int pitch,
                                              T* stages, T* products) {
  using Tile = ContrastTile<T>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int copied_row = threadIdx.x / Tile::kRowVectors, column = threadIdx.x % Tile::kRowVectors * Tile::kVector;
  const T* other = others.rows + static_cast<int64_t>(copied_row) * pitch;
  const int left = others.count() - copied_row;
  T sum[Tile::kOwnPerWarp][Tile::kOthersPerLane];
#pragma unroll
  for (int r = 0; r < Tile::kOwnPerWarp; ++r)
#pragma unroll
    for (int c = 0; c < Tile::kOthersPerLane; ++c) sum[r][c] = 0;

  const auto load = [&](int step, int stage) {
    T* to = stages + stage * Tile::kStage + copied_row * Tile::kPitch + column;
    const int d = step * Tile::kDepth + column;
    if (copied_row < Tile::kOwn) copy_vector(to, own + d, own_used && d < pitch);
#pragma unroll
    for (int i = 0; i < Tile::kOthers; i += Tile::kRowsPerCopy)
      copy_vector(to + (Tile::kOwn + i) * Tile::kPitch, other + static_cast<int64_t>(i) * pitch + d,
                  i < left && d < pitch);
  };
  const auto use = [&](int, int stage) {
    const T* own_tile = stages + stage * Tile::kStage + warp * Tile::kOwnPerWarp * Tile::kPitch;
    const T* other_tile = stages + stage * Tile::kStage + (Tile::kOwn + lane) * Tile::kPitch;
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += Tile::kVector) {
      ContrastVector<T> x[Tile::kOwnPerWarp], y[Tile::kOthersPerLane];
#pragma unroll
      for (int r = 0; r < Tile::kOwnPerWarp; ++r) x[r] = shared_vector(own_tile + r * Tile::kPitch + k);
#pragma unroll
      for (int c = 0; c < Tile::kOthersPerLane; ++c) y[c] = shared_vector(other_tile + c * kWarp * Tile::kPitch + k);
#pragma unroll
      for (int i = 0; i < Tile::kVector; ++i)
#pragma unroll
        for (int r = 0; r < Tile::kOwnPerWarp; ++r)
#pragma unroll
          for (int c = 0; c < Tile::kOthersPerLane; ++c) sum[r][c] = fma(x[r].x[i], y[c].x[i], sum[r][c]);
    }
  };
  pipelined((pitch + Tile::kDepth - 1) / Tile::kDepth, load, use);
#pragma unroll
  for (int r = 0; r < Tile::kOwnPerWarp; ++r)
#pragma unroll
    for (int c = 0; c < Tile::kOthersPerLane; ++c) products[r * Tile::kOthers + lane + c * kWarp] = sum[r][c];
}

// The anchor's logit at its key, from the canonical product of the unit rows, by a warp. Same bits as on the CPU.
template <typename T>
__device__ __forceinline__ double key_logit(const ContrastProblem& p, int64_t group, int64_t anchor) {
  const T *a = unit_row_of<T>(p, group, anchor), *k = unit_row_of<T>(p, group, p.slots() - 1);
  const T cosine = warp_dot<T>([&](int64_t d) { return a[d]; }, [&](int64_t d) { return k[d]; }, p.dim);
  return contrast_logit(cosine, p.temperature, p.inverse_temperature);
}

}  // namespace dgcl
