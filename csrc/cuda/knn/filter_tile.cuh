// One tile of the tensor-core filter: 64 centred queries in float16 against 128 bank rows as they are stored.
#pragma once
#include "../../math/filter_bound.h"
#include "filter_prepare.cuh"

namespace dgcl {

constexpr int kFilterThreads = 256, kFilterWarps = kFilterThreads / kWarp;
constexpr int kFilterColumns = 128;              // bank rows per tile
constexpr int kFilterDepth = 256;                // query columns in shared memory
constexpr int kNarrowStep = 32, kWideStep = 64;  // bank columns in shared memory
constexpr int kQueryPitch = kFilterDepth + 8;    // in elements; the padding spreads 8 rows x 4 words over 32 banks
template <int kStep>
constexpr int kBankPitch = kStep + 8;
constexpr int kRowTiles = kItemQueries / 16, kColumnTiles = kFilterColumns / kFilterWarps / 8;
constexpr float kLargestBound = 1e30f;  // beyond it, products might overflow
static_assert(kFilterDepth % kWideStep == 0 && kWideStep % kNarrowStep == 0 && kNarrowStep % 16 == 0);

template <typename Stored, int kStep>
constexpr size_t kFilterShared = kItemQueries * kQueryPitch * sizeof(__half) +
                                 2 * kFilterColumns * kBankPitch<kStep> * sizeof(Stored) + kFilterDepth * sizeof(float);

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

// Stages bank rows [start, start + kFilterColumns) and columns [depth, depth + kStep) in their dtype, with zeros
// beyond either end.
template <int kStep, typename Stored>
__device__ void stage_filter_bank(const KnnSearchArguments& a, const KnnItem& it, bool vectors, int start, int depth,
                                  Stored* tile) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(Stored));
  const Stored* bank = static_cast<const Stored*>(a.bank.data) + it.group * a.bank.group_stride;
  const int left = static_cast<int>(a.dim) - depth, columns = left < kStep ? left : kStep;
  if (vectors) {
    constexpr int kPerRow = kStep / kVector, kRowsAtOnce = kFilterThreads / kPerRow;
    const int d = threadIdx.x % kPerRow * kVector, first = threadIdx.x / kPerRow;
    const int present = columns - d < kVector ? columns - d : kVector;  // of the vector, or negative
    const int real = present > 0 ? present * static_cast<int>(sizeof(Stored)) : 0;
    const Stored* from = bank + (start + first) * a.bank.row_stride + depth + d;
#pragma unroll
    for (int row = first; row < kFilterColumns; row += kRowsAtOnce, from += kRowsAtOnce * a.bank.row_stride) {
      const bool exists = start + row < it.end_row && real > 0;
      copy_async_16(tile + row * kBankPitch<kStep> + d, exists ? from : bank, exists ? real : 0);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < kFilterColumns * kStep; i += kFilterThreads) {
      const int row = i / kStep, d = i % kStep;
      const bool real = start + row < it.end_row && d < columns;
      tile[row * kBankPitch<kStep> + d] = real ? bank[(start + row) * a.bank.row_stride + depth + d] : Stored(0.0f);
    }
  }
  __pipeline_commit();
}

// What a block keeps in shared memory about each query.
struct FilterQuery {
  float norm_value;
  int norm_exponent;
  float bound;    // |filter score - canonical score|, without the query's constant
  float scale;    // a power of two, for float16
  float unscale;  // takes the scales of query and bank out of a sum

  __device__ RowNorm<float> norm() const { return {norm_value, norm_exponent}; }
};

// A block's shared memory and its item.
template <typename Stored, int kStep>
struct FilterBlock {
  const KnnSearchArguments& a;
  const KnnItem& it;
  __half* queries;     // [kItemQueries][kQueryPitch]
  float* mean;         // [kFilterDepth], scaled like the bank
  FilterQuery* query;  // [kItemQueries]
  float* bank_scale;   // [1]

  // Norm, bound and scales of a query, by one warp. Returns whether the query has a NaN.
  __device__ bool measure_query(int row) const {
    FilterQuery measured{1, 0, 0, 1, 1};
    bool has_nan = false;
    if (row < it.queries) {
      const RowNorm<float> norm = query_norm<float>(a, it.first_query + row);
      measured.norm_value = norm.value;
      measured.norm_exponent = norm.exponent;
      const QueryReader<float> reader(a, it.first_query + row, norm);
      const float* centre = a.mean + it.group * a.dim;
      const auto residual = [&](int64_t d) { return reader(d) - centre[d]; };
      const BankLengths& lengths = a.lengths[it.group];
      const float square = warp_dot<float>(reader, reader, a.dim), length = warp_length_bound(residual, a.dim);
      has_nan = square != square;
      measured.bound = half_filter_bound(
          a.l2, a.dim, {warp_length_bound(square, reader, a.dim), lengths.row, lengths.mean, length, lengths.residual});
      const int bank_exponent = bank_half_exponent(lengths.row, lengths.residual);
      const int exponent = half_exponent(length);
      measured.scale = std::scalbn(1.0f, exponent);
      measured.unscale = std::scalbn(1.0f, -(exponent + bank_exponent));
      if (threadIdx.x % kWarp == 0 && row == 0) bank_scale[0] = std::scalbn(1.0f, bank_exponent);
    }
    if (threadIdx.x % kWarp == 0) query[row] = measured;
    return has_nan;
  }

  // Loads columns [depth, depth + kFilterDepth) of queries and mean.
  __device__ void load_queries(int64_t depth) const {
    const float* centre = a.mean + it.group * a.dim + depth;
    for (int d = threadIdx.x; d < kFilterDepth; d += kFilterThreads)
      mean[d] = depth + d < a.dim ? centre[d] * bank_scale[0] : 0.0f;
    for (int row = threadIdx.x / kWarp; row < kItemQueries; row += kFilterWarps) {
      const QueryReader<float> reader(a, it.first_query + (row < it.queries ? row : 0), query[row].norm());
      const float scale = query[row].scale;
#pragma unroll 1
      for (int d = threadIdx.x % kWarp; d < kFilterDepth; d += kWarp) {
        const bool real = row < it.queries && depth + d < a.dim;
        queries[row * kQueryPitch + d] = __float2half_rn(real ? (reader(depth + d) - centre[d]) * scale : 0.0f);
      }
    }
  }

  // What a bank row of the tile at `start` is multiplied by: the bank's scale, and 1 / norm for unit length.
  __device__ __forceinline__ void load_row_scales(int start, float (&scale)[kColumnTiles]) const {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const int row = start + (threadIdx.x / kWarp * kColumnTiles + n) * 8 + threadIdx.x % kWarp / 4;
      scale[n] = bank_scale[0];
      if (a.normalize_bank && row < it.end_row) {
        const float norm = static_cast<const RowNorm<float>*>(a.bank_norms)[it.group * a.bank_rows + row].value;
        scale[n] = norm == 0 ? 0 : scale[n] / norm;
      }
    }
  }

  // scores += queries x bank tile over the tile's first `columns` columns. `column` is the index of the first one among
  // the query columns.
  __device__ __forceinline__ void multiply(float (&scores)[kRowTiles][kColumnTiles][4],
                                           const float (&scale)[kColumnTiles], const Stored* tile, int column,
                                           int columns) const {
    const int group = threadIdx.x % kWarp / 4, pair = threadIdx.x % 4 * 2;  // lanes as mma numbers them
    const Stored* rows = tile + (threadIdx.x / kWarp * kColumnTiles * 8 + group) * kBankPitch<kStep> + pair;
#pragma unroll 1  // unrolled, the loads would need too many registers
    for (int d = 0; d < columns; d += 16) {
      uint32_t right[kColumnTiles][2];
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 x = load_pair(rows + n * 8 * kBankPitch<kStep> + d + i * 8);
          const float2 m = load_pair(mean + column + d + i * 8 + pair);
          right[n][i] = pack_half(fma(x.x, scale[n], -m.x), fma(x.y, scale[n], -m.y));
        }
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        uint32_t left[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          left[i] = load_vector<uint32_t>(queries + (t * 16 + group + i % 2 * 8) * kQueryPitch + column + d +
                                          i / 2 * 8 + pair);
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) mma_f16_16x8x16(scores[t][n], left, right[n], scores[t][n]);
      }
    }
  }

  // Calls take(row, index, score) for the finished scores of this thread, in the tile at `start`.
  template <typename Take>
  __device__ __forceinline__ void for_each_score(const float (&scores)[kRowTiles][kColumnTiles][4], int start,
                                                 const Take& take) const {
    const int lane = threadIdx.x % kWarp, first = start + threadIdx.x / kWarp * kColumnTiles * 8 + lane % 4 * 2;
    float bias[kColumnTiles][2];
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int index = first + n * 8 + i;
        bias[n][i] = index < it.end_row ? a.bias[it.group * a.bank_rows + index] : 0.0f;
      }
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int row = t * 16 + lane / 4 + lower * 8;
        const float unscale = query[row].unscale;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            take(row, first + n * 8 + i, fma(scores[t][n][lower * 2 + i], unscale, bias[n][i]));
      }
  }
};

}  // namespace dgcl
