// Search in two steps: tensor cores score all pairs in bfloat16, within a proven bound of the score that decides
// (csrc/math/filter_bound.h); rows that may be neighbours are kept and scored exactly at the end.
//
// Both sides are centred at the class's mean row, which makes the bound small for compact classes. 64 queries stay in
// shared memory as bfloat16; the bank goes by in its own dtype, 128 rows x 32 columns at a time, double-buffered, and
// is centred and rounded on its way into registers: no copy of the bank is made. Each warp multiplies all 64 queries by
// 16 rows. An item whose candidates do not fit (rows too much alike for bfloat16) is left unsettled, for
// knn_exact_kernel.
#pragma once
#include "../math/filter_bound.h"
#include "candidates.cuh"
#include "knn_filter_prepare.cuh"

namespace dgcl {

constexpr int kFilterThreads = 256, kFilterWarps = kFilterThreads / kWarp;
constexpr int kFilterColumns = 128;            // bank rows of a tile
constexpr int kFilterDepth = 256;              // columns of queries in shared memory
constexpr int kFilterStep = 32;                // columns of the bank in shared memory
constexpr int kQueryPitch = kFilterDepth + 8;  // in elements; the padding keeps 8 rows x 4 words on 32 banks
constexpr int kBankPitch = kFilterStep + 8;
constexpr int kRowTiles = kItemQueries / 16, kColumnTiles = kFilterColumns / kFilterWarps / 8;
constexpr float kLargestBound = 1e30f;  // beyond, products might overflow
static_assert(kFilterDepth % kFilterStep == 0 && kFilterStep % 16 == 0);

template <typename Stored>
constexpr size_t kFilterShared = kItemQueries * kQueryPitch * sizeof(__nv_bfloat16) +
                                 2 * kFilterColumns * kBankPitch * sizeof(Stored) + kFilterDepth * sizeof(float);

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

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

// Bank rows [start, start + kFilterColumns), columns [depth, depth + kFilterStep), as stored; zeros beyond either end.
template <typename Stored>
__device__ void stage_filter_bank(const KnnSearchArguments& a, const KnnItem& it, bool vectors, int64_t start,
                                  int64_t depth, Stored* tile) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(Stored));
  const Stored* bank = static_cast<const Stored*>(a.bank.data) + it.group * a.bank.group_stride;
  const int columns = static_cast<int>(clamped(a.dim - depth, kFilterStep));
  if (vectors) {
    for (int i = threadIdx.x; i < kFilterColumns * kFilterStep / kVector; i += kFilterThreads) {
      const int row = i / (kFilterStep / kVector), d = i % (kFilterStep / kVector) * kVector;
      const int real = static_cast<int>(clamped(start + row < it.end_row ? columns - d : 0, kVector));
      const Stored* from = real > 0 ? bank + (start + row) * a.bank.row_stride + depth + d : bank;
      __pipeline_memcpy_async(tile + row * kBankPitch + d, from, 16, 16 - real * sizeof(Stored));
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

// Replaces the filter scores of candidates [first, first + kTogether) by canonical ones: several at a time, because
// each waits for a row from far away.
constexpr int kTogether = 4;
template <typename Stored>
__device__ __forceinline__ void warp_score(const KnnSearchArguments& a, const KnnItem& it,
                                           const QueryReader<float>& query, const CandidateList<float>& list, int first,
                                           int n) {
  const int lane = threadIdx.x % kWarp;
  float sum[kTogether] = {};
  const Stored* rows[kTogether];
  RowNorm<float> norm[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int32_t index = list.index[first + i < n ? first + i : first];
    rows[i] = static_cast<const Stored*>(a.bank.data) + it.group * a.bank.group_stride + index * a.bank.row_stride;
    if (a.normalise_bank) norm[i] = BankReader<float>(a, index, it.group).norm;
  }
#pragma unroll 1
  for (int64_t d = lane; d < a.dim; d += kWarp) {
    const float x = query(d);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const float stored = widen(rows[i][d]), y = a.normalise_bank ? unit_element(stored, norm[i]) : stored;
      sum[i] = a.l2 ? fma(x - y, x - y, sum[i]) : fma(x, y, sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    sum[i] = warp_reduce_sum(sum[i]);
    if (lane == 0 && first + i < n) list.score[first + i] = a.l2 ? -sqrt(sum[i]) : sum[i];
  }
}

// One block's shared memory and its place in the problem.
template <typename Stored>
struct FilterBlock {
  const KnnSearchArguments& a;
  const KnnItem& it;
  __nv_bfloat16* queries;                 // [kItemQueries][kQueryPitch]
  Stored* bank;                           // [2][kFilterColumns][kBankPitch]
  float* mean;                            // [kFilterDepth]
  float *threshold, *bound, *norm_value;  // [kItemQueries]
  int *length, *norm_exponent;

  __device__ RowNorm<float> norm(int row) const { return {norm_value[row], norm_exponent[row]}; }

  // Columns [depth, depth + kFilterDepth) of queries and mean.
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

  // scores += queries x bank tile over kFilterStep columns; `column` is the first of them within the query columns.
  __device__ __forceinline__ void multiply(float (&scores)[kRowTiles][kColumnTiles][4],
                                           const float (&scale)[kColumnTiles], const Stored* tile, int column) const {
    const int group = threadIdx.x % kWarp / 4, pair = threadIdx.x % 4 * 2;  // as the mma instruction numbers lanes
    const Stored* rows = tile + (threadIdx.x / kWarp * kColumnTiles * 8 + group) * kBankPitch + pair;
#pragma unroll 1  // unrolled, its loads would take more registers than there are
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

template <typename Stored>
__global__ void __launch_bounds__(kFilterThreads, 2)
    knn_filter_kernel(KnnSearchArguments a, int64_t items, bool vectors) {
  DGCL_DYNAMIC_SHARED(unsigned char, shared);
  DGCL_SHARED(float, threshold, [kItemQueries]);  // what a filter score must reach
  DGCL_SHARED(float, bound, [kItemQueries]);      // of |filter score - canonical score|, up to the query's constant
  DGCL_SHARED(float, norm_value, [kItemQueries]);
  DGCL_SHARED(int, norm_exponent, [kItemQueries]);
  DGCL_SHARED(int, length, [kItemQueries]);  // of the candidate list; -1 for a query with a NaN
  DGCL_SHARED(int, overflow, [1]);
  DGCL_SHARED(KnnItem, shared_item, [1]);  // rather than in the registers of every thread
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t scratch = static_cast<int64_t>(blockIdx.x) * kItemQueries * a.capacity;
  const CandidateList<float> lists{static_cast<float*>(a.candidate_score) + scratch, a.candidate_index + scratch};
  const auto list_of = [&](int row) -> CandidateList<float> {
    return {lists.score + row * a.capacity, lists.index + row * a.capacity};
  };

  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    if (threadIdx.x == 0) {
      shared_item[0] = knn_item(a, item);
      overflow[0] = 0;
    }
    __syncthreads();
    const KnnItem& it = shared_item[0];
    __nv_bfloat16* queries = reinterpret_cast<__nv_bfloat16*>(shared);
    Stored* bank = reinterpret_cast<Stored*>(queries + kItemQueries * kQueryPitch);
    const FilterBlock<Stored> block{
        a,         it,    queries,    bank,   reinterpret_cast<float*>(bank + 2 * kFilterColumns * kBankPitch),
        threshold, bound, norm_value, length, norm_exponent};
    for (int row = warp; row < kItemQueries; row += kFilterWarps) {
      float start = std::numeric_limits<float>::infinity(), error = 0;
      RowNorm<float> norm{1, 0};
      bool lost = false;
      if (row < it.queries) {
        norm = query_norm<float>(a, it.first_query + row);
        const QueryReader<float> query(a, it.first_query + row, norm);
        const float* mean = a.mean + it.group * a.dim;
        const auto residual = [&](int64_t d) { return query(d) - mean[d]; };
        const float* reach = a.reach + it.group * kReach;
        const float square = warp_dot<float>(query, query, a.dim);
        error = bfloat16_filter_bound(
            a.l2, a.dim,
            {warp_length_bound(query, a.dim), reach[0], reach[2], warp_length_bound(residual, a.dim), reach[1]});
        lost = square != square;
        if (!lost) start = -start;
      }
      if (lane == 0) {
        norm_value[row] = norm.value;
        norm_exponent[row] = norm.exponent;
        threshold[row] = start;
        bound[row] = error;
        length[row] = lost ? -1 : 0;
        if (!lost && !(error < kLargestBound)) overflow[0] = 1;
      }
    }
    __syncthreads();

    const int steps_down = static_cast<int>((a.dim + kFilterStep - 1) / kFilterStep);
    const int64_t tiles = (it.end_row - it.begin_row + kFilterColumns - 1) / kFilterColumns;
    const int64_t steps = it.queries == 0 || overflow[0] ? 0 : tiles * steps_down;
    const auto stage = [&](int64_t step) {
      stage_filter_bank(a, it, vectors, it.begin_row + step / steps_down * kFilterColumns,
                        step % steps_down * kFilterStep, bank + step % 2 * kFilterColumns * kBankPitch);
    };
    const int first_place = a.exclude_self ? static_cast<int>(it.first_place) : INT_MIN;
    float scores[kRowTiles][kColumnTiles][4];
    float scale[kColumnTiles];
    if (steps > 0) stage(0);
    for (int64_t step = 0; step < steps; ++step) {
      const int start = it.begin_row + static_cast<int>(step / steps_down) * kFilterColumns;
      const int down = static_cast<int>(step % steps_down), column = down * kFilterStep % kFilterDepth;
      if (column == 0 && (step == 0 || a.dim > kFilterDepth)) block.load_queries(down * kFilterStep);
      if (step + 1 < steps) {
        stage(step + 1);
        __pipeline_wait_prior(1);
      } else {
        __pipeline_wait_prior(0);
      }
      __syncthreads();
      if (overflow[0]) break;  // the same for all: it is set between the barriers below and above
      if (down == 0) {
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
          for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[t][n][i] = 0;
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
          const int row = start + (warp * kColumnTiles + n) * 8 + lane / 4;
          scale[n] = 1;
          if (a.normalise_bank && row < it.end_row) {
            const float norm = static_cast<const float*>(a.norm)[it.group * a.bank_rows + row];
            scale[n] = norm == 0 ? 0 : 1 / norm;
          }
        }
      }
      block.multiply(scores, scale, bank + step % 2 * kFilterColumns * kBankPitch, column);
      const bool finished = down == steps_down - 1;
      if (finished) {
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int index = start + (warp * kColumnTiles + n) * 8 + lane % 4 * 2 + i;
            const float bias = index < it.end_row ? a.bias[it.group * a.bank_rows + index] : 0.0f;
#pragma unroll
            for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
              for (int lower = 0; lower < 2; ++lower) {
                const int row = t * 16 + lane / 4 + lower * 8;
                const float score = scores[t][n][lower * 2 + i] + bias;
                const bool self = index == first_place + row;
                if (score >= threshold[row] && index < it.end_row && !self) {
                  const int at = row * a.capacity + atomicAdd(&length[row], 1);
                  lists.score[at] = score;
                  lists.index[at] = index;
                }
              }
          }
      }
      __syncthreads();
      if (!finished) continue;
      for (int row = warp; row < it.queries; row += kFilterWarps) {
        const int n = length[row];
        if (n <= a.capacity - kFilterColumns) continue;
        const float kth = warp_kth_bound(list_of(row).score, n, a.k);
        const int kept = warp_keep(list_of(row), n, kth - 2 * bound[row]);
        if (lane != 0) continue;
        length[row] = kept;
        threshold[row] = kth - 2 * bound[row];
        if (kept > a.capacity - kFilterColumns) overflow[0] = 1;
      }
    }
    __pipeline_wait_prior(0);
    __syncthreads();

    // Exact scores of the candidates, a warp a query.
    const bool settled = !overflow[0];
    if (threadIdx.x == 0) a.settled[item] = settled;
    for (int row = warp; settled && row < it.queries; row += kFilterWarps) {
      const CandidateList<float> list = list_of(row);
      int n = length[row];
      if (n > a.k) n = warp_keep(list, n, warp_kth_bound(list.score, n, a.k) - 2 * bound[row]);
      const QueryReader<float> query(a, it.first_query + row, block.norm(row));
      for (int i = 0; i < n; i += kTogether) warp_score<Stored>(a, it, query, list, i, n);
      __syncwarp();
      if (n > 0) warp_sort(list, n);
      if (n > a.k) n = a.k;
      while (n > 0 && !(list.score[n - 1] > -std::numeric_limits<float>::infinity())) --n;
      warp_write_list(a, it.split, it.first_query + row, list, n);
    }
    __syncthreads();
  }
}

}  // namespace dgcl
