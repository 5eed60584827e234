// One tile of the tensor-core filter: 64 centred queries in bfloat16 against 128 bank rows as they are stored.
#pragma once
#include "items.cuh"

namespace dgcl {

constexpr int kFilterThreads = 256, kFilterWarps = kFilterThreads / kWarp;
constexpr int kFilterColumns = 128;            // bank rows per tile
constexpr int kFilterDepth = 256;              // query columns in shared memory
constexpr int kFilterStep = 32;                // bank columns in shared memory
constexpr int kQueryPitch = kFilterDepth + 8;  // in elements; the padding spreads 8 rows x 4 words over 32 banks
constexpr int kBankPitch = kFilterStep + 8;
constexpr int kRowTiles = kItemQueries / 16, kColumnTiles = kFilterColumns / kFilterWarps / 8;
constexpr float kLargestBound = 1e30f;  // beyond it, products might overflow
static_assert(kFilterDepth % kFilterStep == 0 && kFilterStep % 16 == 0);

template <typename Stored>
constexpr size_t kFilterShared = kItemQueries * kQueryPitch * sizeof(__nv_bfloat16) +
                                 2 * kFilterColumns * kBankPitch * sizeof(Stored) + kFilterDepth * sizeof(float);

// Two neighbouring elements, widened.
__device__ __forceinline__ float2 load_pair(const float* p) { return load_vector<float2>(p); }
__device__ __forceinline__ float2 load_pair(const __nv_bfloat16* p) {
  const uint32_t bits = load_vector<uint32_t>(p);
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}
__device__ __forceinline__ float2 load_pair(const __half* p) {
  const uint32_t bits = load_vector<uint32_t>(p);
  __half pair[2];
  memcpy(pair, &bits, sizeof(bits));
  return make_float2(__half2float(pair[0]), __half2float(pair[1]));
}

// Stages bank rows [start, start + kFilterColumns) and columns [depth, depth + kFilterStep) in their dtype, with zeros
// beyond either end.
template <typename Stored>
__device__ void stage_filter_bank(const KnnSearchArguments& a, const KnnItem& it, bool vectors, int64_t start,
                                  int64_t depth, Stored* tile) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(Stored));
  const Stored* bank = static_cast<const Stored*>(a.bank.data) + it.group * a.bank.group_stride;
  const int columns = static_cast<int>(clamped(a.dim - depth, kFilterStep));
  if (vectors) {
    constexpr int kPerRow = kFilterStep / kVector, kRowsAtOnce = kFilterThreads / kPerRow;
    const int d = threadIdx.x % kPerRow * kVector, first = threadIdx.x / kPerRow;
    const int real = static_cast<int>(clamped(columns - d, kVector) * sizeof(Stored));
    const Stored* from = bank + (start + first) * a.bank.row_stride + depth + d;
#pragma unroll
    for (int row = first; row < kFilterColumns; row += kRowsAtOnce, from += kRowsAtOnce * a.bank.row_stride) {
      const bool exists = start + row < it.end_row && real > 0;
      copy_async_16(tile + row * kBankPitch + d, exists ? from : bank, exists ? real : 0);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < kFilterColumns * kFilterStep; i += kFilterThreads) {
      const int row = i / kFilterStep, d = i % kFilterStep;
      const bool real = start + row < it.end_row && d < columns;
      tile[row * kBankPitch + d] = real ? bank[(start + row) * a.bank.row_stride + depth + d] : Stored(0.0f);
    }
  }
  __pipeline_commit();
}

// A block's shared memory and its item.
template <typename Stored>
struct FilterBlock {
  const KnnSearchArguments& a;
  const KnnItem& it;
  __nv_bfloat16* queries;  // [kItemQueries][kQueryPitch]
  float* mean;             // [kFilterDepth]
  float* norm_value;       // [kItemQueries]
  int* norm_exponent;      // [kItemQueries]

  __device__ RowNorm<float> norm(int row) const { return {norm_value[row], norm_exponent[row]}; }

  // Loads columns [depth, depth + kFilterDepth) of queries and mean.
  __device__ void load_queries(int64_t depth) const {
    const float* centre = a.mean + it.group * a.dim + depth;
    for (int d = threadIdx.x; d < kFilterDepth; d += kFilterThreads) mean[d] = depth + d < a.dim ? centre[d] : 0.0f;
    for (int row = threadIdx.x / kWarp; row < kItemQueries; row += kFilterWarps) {
      const QueryReader<float> query(a, it.first_query + (row < it.queries ? row : 0), norm(row));
#pragma unroll 1
      for (int d = threadIdx.x % kWarp; d < kFilterDepth; d += kWarp) {
        const bool real = row < it.queries && depth + d < a.dim;
        queries[row * kQueryPitch + d] = __float2bfloat16_rn(real ? query(depth + d) - centre[d] : 0.0f);
      }
    }
  }

  // scores += queries x bank tile over kFilterStep columns. `column` is the first of them among the query columns.
  __device__ __forceinline__ void multiply(float (&scores)[kRowTiles][kColumnTiles][4],
                                           const float (&scale)[kColumnTiles], const Stored* tile, int column) const {
    const int group = threadIdx.x % kWarp / 4, pair = threadIdx.x % 4 * 2;  // lanes as mma numbers them
    const Stored* rows = tile + (threadIdx.x / kWarp * kColumnTiles * 8 + group) * kBankPitch + pair;
#pragma unroll 1  // unrolled, the loads would need too many registers
    for (int d = 0; d < kFilterStep; d += 16) {
      uint32_t right[kColumnTiles][2];
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 x = load_pair(rows + n * 8 * kBankPitch + d + i * 8);
          const float2 m = load_pair(mean + column + d + i * 8 + pair);
          right[n][i] = pack_bfloat16(fma(x.x, scale[n], -m.x), fma(x.y, scale[n], -m.y));
        }
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        uint32_t left[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          left[i] = load_vector<uint32_t>(queries + (t * 16 + group + i % 2 * 8) * kQueryPitch + column + d +
                                          i / 2 * 8 + pair);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) mma_bf16_16x8x16(scores[t][n], left, right[n], scores[t][n]);
      }
    }
  }
};

}  // namespace dgcl
