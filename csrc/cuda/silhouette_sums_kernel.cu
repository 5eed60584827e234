// Sums of distances by class, from differences in float64: |x - y|^2 = sum over d of (x_d - y_d)^2.
//
// A block compares 64 rows with 64 features at a time. Each thread has 4 x 4 pairs, and columns of both sides are
// staged in shared memory. A tile of features never spans two classes, so the sums stay in registers until the class is
// done. A block writes only its own cells of the result, so the order is fixed without atomics. Offsets may hold
// anything; they are clamped to the number of features.
#include "rows.cuh"
#include "silhouette_sums_kernel.h"

namespace dgcl {

constexpr int kPairSide = 16;     // threads on each side of a tile
constexpr int kPairsPerSide = 4;  // pairs per thread and side
constexpr int kPairTile = kPairSide * kPairsPerSide;
constexpr int kPairThreads = kPairSide * kPairSide;
constexpr int kPairDepth = 16;             // columns staged at a time
constexpr int kPairPitch = kPairTile + 1;  // one extra against bank conflicts

// to[d][r] = row `first` + r, column `column` + d. Missing elements are 0.
__device__ __forceinline__ void stage_columns(const RowView& from, int64_t first, int64_t end, int64_t column,
                                              int64_t dim, double (*to)[kPairPitch]) {
#pragma unroll
  for (int e = threadIdx.x; e < kPairTile * kPairDepth; e += kPairThreads) {
    const int r = e / kPairDepth, d = e % kPairDepth;
    const bool exists = first + r < end && column + d < dim;
    to[d][r] = exists ? load_element<double>(from.data, from.dtype, (first + r) * from.row_stride + column + d) : 0.0;
  }
}

__device__ __forceinline__ int64_t clamped_offset(const SilhouetteSumsArguments& a, int64_t c) {
  return clamped(a.offsets[c], a.num_features);
}

// blockIdx.x is the tile of rows. blockIdx.y is the first class; every gridDim.y-th class follows.
__global__ void __launch_bounds__(kPairThreads) silhouette_sums_kernel(SilhouetteSumsArguments a) {
  DGCL_SHARED(double, left, [kPairDepth][kPairPitch]);
  DGCL_SHARED(double, right, [kPairDepth][kPairPitch]);
  const int x = threadIdx.x % kPairSide, y = threadIdx.x / kPairSide;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kPairTile;
  for (int64_t c = blockIdx.y; c < a.num_classes; c += gridDim.y) {
    const int64_t end = clamped_offset(a, c + 1);
    double sums[kPairsPerSide] = {};
    for (int64_t first = clamped_offset(a, c); first < end; first += kPairTile) {
      // 1. Squared distances of the tile, column by column.
      double squares[kPairsPerSide][kPairsPerSide] = {};
      for (int64_t column = 0; column < a.dim; column += kPairDepth) {
        stage_columns(a.rows, first_row, a.num_rows, column, a.dim, left);
        stage_columns(a.features, first, end, column, a.dim, right);
        __syncthreads();
#pragma unroll 4
        for (int d = 0; d < kPairDepth; ++d) {
          double row[kPairsPerSide], feature[kPairsPerSide];
#pragma unroll
          for (int k = 0; k < kPairsPerSide; ++k) {
            row[k] = left[d][y + k * kPairSide];
            feature[k] = right[d][x + k * kPairSide];
          }
#pragma unroll
          for (int i = 0; i < kPairsPerSide; ++i)
#pragma unroll
            for (int j = 0; j < kPairsPerSide; ++j) {
              const double difference = row[i] - feature[j];
              squares[i][j] = fma(difference, difference, squares[i][j]);
            }
        }
        __syncthreads();
      }
      // 2. Distances, added to the thread's own sums.
#pragma unroll
      for (int j = 0; j < kPairsPerSide; ++j)
        if (first + x + j * kPairSide < end)
#pragma unroll
          for (int i = 0; i < kPairsPerSide; ++i) sums[i] += sqrt(squares[i][j]);
    }
    // 3. The sums of the 16 threads of a row, each in half a warp.
#pragma unroll
    for (int i = 0; i < kPairsPerSide; ++i) {
#pragma unroll
      for (int step = kPairSide / 2; step > 0; step /= 2) sums[i] += __shfl_xor_sync(kFullWarp, sums[i], step);
      const int64_t row = first_row + y + i * kPairSide;
      if (x == 0 && row < a.num_rows) a.sums[row * a.num_classes + c] = sums[i];
    }
  }
}

#ifndef __CUDACC_RTC__  // host code, which NVRTC does not compile
namespace {

// Enough for the largest devices. With fewer tiles of rows, the classes are divided among blocks.
constexpr int64_t kEnoughBlocks = 1024;

}  // namespace

int launch_silhouette_sums(const SilhouetteSumsArguments& a, void* stream) {
  if (a.num_rows == 0 || a.num_classes == 0) return 0;
  const int64_t tiles = (a.num_rows + kPairTile - 1) / kPairTile, shares = (kEnoughBlocks + tiles - 1) / tiles;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(shares < a.num_classes ? shares : a.num_classes));
  DGCL_LAUNCH(silhouette_sums_kernel, grid, dim3(kPairThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}
#endif

}  // namespace dgcl
