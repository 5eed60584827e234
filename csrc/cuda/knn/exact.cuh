// The exact search: canonical scores (csrc/math/canonical.h) of all pairs, tile by tile.
//
// A warp holds 8 x 8 pairs, or 8 x 4 in double. Its lanes are the 32 partial sums of the canonical dot product. So a
// step over 32 columns is one fused multiply-add per pair, and two loads for eight of them, as in an ordinary
// register-tiled product. The price of exactness is one tree reduction of all pairs at the end (62 shuffles). Works for
// any dtype, metric and size.
#pragma once
#include "candidates.cuh"
#include "items.cuh"

namespace dgcl {

constexpr int kExactThreads = 256;
constexpr int kExactRows = 32;  // queries per tile: 4 warps of 8
constexpr int kPairRows = 8;
template <typename T>
constexpr int kPairColumns = 32 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kExactColumns = 2 * kPairColumns<T>;  // bank rows per tile: 2 warps
static_assert(kExactRows / kPairRows * 2 * kWarp == kExactThreads);
static_assert(kItemQueries % kExactRows == 0);

// Columns of a row in shared memory at a time: 1 KB per row.
template <typename T>
constexpr int kExactDepth = 1024 / static_cast<int>(sizeof(T));
template <typename T>
constexpr size_t kExactShared = (kExactRows + 2 * kExactColumns<T>)*kExactDepth<T> * sizeof(T);

// Stages bank rows [start, start + kExactColumns) and columns [depth, depth + kExactDepth), with zeros beyond either
// end.
template <typename T>
__device__ void stage_exact_bank(const KnnSearchArguments& a, const KnnItem& it, bool vectors, int64_t start,
                                 int64_t depth, T* tile) {
  constexpr int kDepth = kExactDepth<T>, kVector = 16 / static_cast<int>(sizeof(T)), kColumns = kExactColumns<T>;
  const int columns = static_cast<int>(clamped(a.dim - depth, kDepth));
  if (vectors) {  // no conversion, and aligned: copied while the last tile is computed
    constexpr int kPerRow = kDepth / kVector, kRowsAtOnce = kExactThreads / kPerRow;
    const int d = threadIdx.x % kPerRow * kVector, first = threadIdx.x / kPerRow;
    const int real = static_cast<int>(clamped(columns - d, kVector) * sizeof(T));
    const T* bank = static_cast<const T*>(a.bank.data);
    const T* from = bank + it.group * a.bank.group_stride + (start + first) * a.bank.row_stride + depth + d;
#pragma unroll
    for (int row = first; row < kColumns; row += kRowsAtOnce, from += kRowsAtOnce * a.bank.row_stride) {
      const bool exists = start + row < it.end_row && real > 0;
      copy_async_16(tile + row * kDepth + d, exists ? from : bank, exists ? real : 0);
    }
  } else {
    for (int row = threadIdx.x / kWarp; row < kColumns; row += kExactThreads / kWarp) {
      const bool real = start + row < it.end_row;
      const BankReader<T> reader(a, real ? start + row : it.begin_row, it.group);
      for (int d = threadIdx.x % kWarp; d < kDepth; d += kWarp)
        tile[row * kDepth + d] = real && d < columns ? reader(depth + d) : T(0);
    }
  }
  __pipeline_commit();
}

// The canonical tree for n pairs at once, n = 32 or 64. Lane l ends with the sums of pairs l n / 32 + i in v[i]. In
// each step a lane sends the half that its partner keeps.
template <int kStep = kWarp / 2, typename T, int n>
__device__ __forceinline__ void reduce_pairs(T (&v)[n]) {
  constexpr int kHalf = kStep * n / kWarp;
  const bool upper = threadIdx.x & kStep;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const T sent = upper ? v[i] : v[i + kHalf];
    const T kept = upper ? v[i + kHalf] : v[i];
    v[i] = kept + __shfl_xor_sync(kFullWarp, sent, kStep);
  }
  if constexpr (kStep > 1) reduce_pairs<kStep / 2>(v);
}

template <typename T, bool kL2>
__global__ void __launch_bounds__(kExactThreads, 1)
    knn_exact_kernel(KnnSearchArguments a, int64_t items, bool vectors) {
  constexpr int kDepth = kExactDepth<T>, kWarps = kExactThreads / kWarp, kColumns = kExactColumns<T>;
  constexpr int kPairs = kPairRows * kPairColumns<T>;
  DGCL_DYNAMIC_SHARED(T, shared);
  T* query_tile = shared;                            // [kExactRows][kDepth]
  T* bank_tiles = query_tile + kExactRows * kDepth;  // [2][kColumns][kDepth]
  DGCL_SHARED(T, threshold, [kExactRows]);           // a score must exceed it
  DGCL_SHARED(int, length, [kExactRows]);            // length of the candidate list
  DGCL_SHARED(T, norm_value, [kExactRows]);
  DGCL_SHARED(int, norm_exponent, [kExactRows]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_row = warp % (kExactRows / kPairRows) * kPairRows;
  const int warp_column = warp / (kExactRows / kPairRows) * kPairColumns<T>;
  const int64_t scratch = static_cast<int64_t>(blockIdx.x) * kExactRows * a.plan.capacity;
  const auto list_of = [&](int row) -> CandidateList<T> {
    const int64_t at = scratch + static_cast<int64_t>(row) * a.plan.capacity;
    return {static_cast<T*>(a.candidate_score) + at, a.candidate_index + at};
  };

  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    if (a.plan.filter && !a.unresolved[item / a.plan.splits]) continue;
    const KnnItem it = knn_item(a, item);
    for (int half = 0; half < it.queries; half += kExactRows) {
      const int rows = it.queries - half < kExactRows ? it.queries - half : kExactRows;
      // 1. Norms and first thresholds of the queries.
      for (int row = warp; row < kExactRows; row += kWarps) {
        RowNorm<T> norm{1, 0};
        bool unused = row >= rows;  // no score passes the threshold of a padding row or of a query with a NaN
        if (!unused) {
          norm = query_norm<T>(a, it.first_query + half + row);
          const QueryReader<T> query(a, it.first_query + half + row, norm);
          const T square = warp_dot<T>(query, query, a.dim);
          unused = square != square;
        }
        if (lane == 0) {
          norm_value[row] = norm.value;
          norm_exponent[row] = norm.exponent;
          threshold[row] = unused ? std::numeric_limits<T>::infinity() : -std::numeric_limits<T>::infinity();
          length[row] = unused ? -1 : 0;
        }
      }
      __syncthreads();

      T sums[kPairs];
      const int chunks = static_cast<int>((a.dim + kDepth - 1) / kDepth);
      const int64_t tiles = (it.end_row - it.begin_row + kColumns - 1) / kColumns, steps = tiles * chunks;
      TileWalk next(it.begin_row, kColumns, chunks), now = next;
      const auto stage = [&](int64_t step) {
        stage_exact_bank(a, it, vectors, next.start, next.chunk * int64_t(kDepth),
                         bank_tiles + step % 2 * kColumns * kDepth);
        next.advance();
      };
      if (steps > 0) stage(0);
      for (int64_t step = 0; step < steps; ++step, now.advance()) {
        const int64_t depth = now.chunk * int64_t(kDepth);
        const int columns = static_cast<int>(clamped(a.dim - depth, kDepth));
        // 2. Stage the columns of the queries for this step, and of the bank for the next.
        if (step == 0 || chunks > 1) {
          for (int row = warp; row < kExactRows; row += kWarps) {
            const int64_t query = it.first_query + half + (row < rows ? row : 0);
            const QueryReader<T> reader(a, query, {norm_value[row], norm_exponent[row]});
            for (int d = lane; d < kDepth; d += kWarp)
              query_tile[row * kDepth + d] = row < rows && d < columns ? reader(depth + d) : T(0);
          }
        }
        if (step + 1 < steps) {
          stage(step + 1);
          __pipeline_wait_prior(1);
        } else {
          __pipeline_wait_prior(0);
        }
        __syncthreads();

        if (depth == 0) {
#pragma unroll
          for (int i = 0; i < kPairs; ++i) sums[i] = 0;
        }
        // 3. Products.
        const T* q = query_tile + warp_row * kDepth + lane;
        const T* b = bank_tiles + (step % 2 * kColumns + warp_column) * kDepth + lane;
#pragma unroll 1
        for (int d = 0; d < columns; d += kWarp) {
          T x[kPairRows], y[kPairColumns<T>];
#pragma unroll
          for (int i = 0; i < kPairRows; ++i) x[i] = q[i * kDepth + d];
#pragma unroll
          for (int j = 0; j < kPairColumns<T>; ++j) y[j] = b[j * kDepth + d];
#pragma unroll
          for (int i = 0; i < kPairRows; ++i)
#pragma unroll
            for (int j = 0; j < kPairColumns<T>; ++j) {
              T& sum = sums[i * kPairColumns<T> + j];
              sum = score_step(kL2, x[i], y[j], sum);
            }
        }
        // 4. Scores above the threshold go to the lists. Full lists are cut down, and the threshold rises.
        const bool finished = now.chunk == chunks - 1;
        if (finished) {
          reduce_pairs(sums);
          const int row = warp_row + lane / 4;
          const int64_t place = it.first_place + half + row;
          const CandidateList<T> list = list_of(row);
#pragma unroll
          for (int i = 0; i < kPairs / kWarp; ++i) {
            const int64_t index = now.start + warp_column + lane % 4 * (kPairs / kWarp) + i;
            const T score = score_of_sum(kL2, sums[i]);
            if (index < it.end_row && !(a.exclude_self && index == place) && score > threshold[row]) {
              const int at = atomicAdd(&length[row], 1);
              list.score[at] = score;
              list.index[at] = static_cast<int32_t>(index);
            }
          }
        }
        __syncthreads();
        if (!finished) continue;
        for (int row = warp; row < kExactRows; row += kWarps) {
          if (length[row] <= a.plan.capacity - kColumns) continue;
          warp_sort(list_of(row), length[row]);
          if (lane == 0) {
            length[row] = length[row] < a.k ? length[row] : a.k;
            // Later rows have higher indices, so an equal score does not displace these.
            if (length[row] == a.k) threshold[row] = list_of(row).score[a.k - 1];
          }
          __syncwarp();
        }
      }
      // 5. Write the lists, each by the warp that cut it down.
      for (int row = warp; row < rows; row += kWarps) {
        if (length[row] > 0) warp_sort(list_of(row), length[row]);
        warp_write_list(a, it.split, it.first_query + half + row, list_of(row), length[row] < a.k ? length[row] : a.k);
      }
      __syncthreads();
    }
  }
}

}  // namespace dgcl
