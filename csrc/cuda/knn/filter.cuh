// The search in two steps. Tensor cores score all pairs in float16, within a proven bound of the canonical score
// (csrc/math/filter_bound.h). Rows that may be neighbours are kept and scored canonically at the end.
//
// Both sides are centred at the class's mean row, which makes the bound small for compact classes. Powers of two scale
// them into float16's range. 64 queries stay in shared memory as float16. The bank streams in its own dtype, 128 rows x
// kStep columns at a time, double-buffered. It is centred, scaled and rounded on its way into registers, so there is no
// copy of the bank. Each warp multiplies all 64 queries by 16 rows. If the candidates of a query tile do not fit,
// because its rows are too close for float16, the tile is left to knn_exact_kernel.
#pragma once
#include "candidates.cuh"
#include "filter_cut.cuh"

namespace dgcl {

// Replaces the filter scores of candidates [first, first + kTogether) by canonical scores. Their rows come from global
// memory. So each lane loads kTogether x kColumnsTogether elements before it uses the first.
constexpr int kTogether = 4, kColumnsTogether = 2;
template <typename Stored>
__device__ __forceinline__ void warp_score(const KnnSearchArguments& a, const KnnItem& it,
                                           const QueryReader<float>& query, const CandidateList<float>& list, int first,
                                           int n) {
  const int lane = threadIdx.x % kWarp, dim = static_cast<int>(a.dim);
  float sum[kTogether] = {};
  const Stored* rows[kTogether];
  RowNorm<float> norm[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int32_t index = list.index[first + i < n ? first + i : first];
    rows[i] = static_cast<const Stored*>(a.bank.data) + it.group * a.bank.group_stride + index * a.bank.row_stride;
    if (a.normalize_bank) norm[i] = BankReader<float>(a, index, it.group).norm;
  }
#pragma unroll 1
  for (int begin = lane; begin < dim; begin += kColumnsTogether * kWarp) {
    float y[kColumnsTogether][kTogether];
#pragma unroll
    for (int j = 0; j < kColumnsTogether; ++j)
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int d = begin + j * kWarp;
        y[j][i] = d < dim ? widen(rows[i][d]) : 0.0f;
      }
#pragma unroll
    for (int j = 0; j < kColumnsTogether; ++j) {
      const int d = begin + j * kWarp;
      if (d >= dim) break;
      const float x = query(d);
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        sum[i] = score_step(a.l2, x, element_of_unit(y[j][i], norm[i], a.normalize_bank), sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    sum[i] = warp_reduce_sum(sum[i]);
    if (lane == 0 && first + i < n) list.score[first + i] = score_of_sum(a.l2, sum[i]);
  }
}

template <typename Stored, int kStep>
__global__ void __launch_bounds__(kFilterThreads, 2) knn_filter_kernel(KnnSearchArguments a, bool vectors) {
  DGCL_DYNAMIC_SHARED(unsigned char, shared);
  DGCL_SHARED(float, threshold, [kItemQueries]);  // a filter score must reach it
  DGCL_SHARED(FilterQuery, query, [kItemQueries]);
  DGCL_SHARED(float, bank_scale, [1]);
  DGCL_SHARED(int, length, [kItemQueries]);  // length of the candidate list; -1 for a query with a NaN
  DGCL_SHARED(int, overflow, [1]);
  // not in the registers of every thread
  DGCL_SHARED(FilterRun, run, [1]);
  DGCL_SHARED(FilterItem, shared_item, [1]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t scratch = static_cast<int64_t>(blockIdx.x) * kItemQueries * a.plan.capacity;
  const CandidateList<float> lists{static_cast<float*>(a.candidate_score) + scratch, a.candidate_index + scratch};
  const auto list_of = [&](int row) -> CandidateList<float> {
    return {lists.score + row * a.plan.capacity, lists.index + row * a.plan.capacity};
  };

  if (warp == 0) {
    const FilterRun own = warp_filter_run(a);
    if (lane == 0) run[0] = own;
  }
  __syncthreads();
  while (run[0].next < run[0].end) {
    if (warp == 0) {
      const FilterItem item = warp_filter_item(a, run[0]);
      if (lane == 0) {
        shared_item[0] = item;
        overflow[0] = 0;
      }
    }
    __syncthreads();
    const FilterItem& it = shared_item[0];
    __half* queries = reinterpret_cast<__half*>(shared);
    Stored* bank = reinterpret_cast<Stored*>(queries + kItemQueries * kQueryPitch);
    float* mean = reinterpret_cast<float*>(bank + 2 * kFilterColumns * kBankPitch<kStep>);
    const FilterBlock<Stored, kStep> block{a, it, queries, mean, query, bank_scale};
    // 1. Norms, bounds and first thresholds of the queries.
    for (int row = warp; row < kItemQueries; row += kFilterWarps) {
      const bool has_nan = block.measure_query(row);
      if (lane == 0) {
        // no row reaches the threshold of a padding row or of a query with a NaN
        const float infinity = std::numeric_limits<float>::infinity();
        threshold[row] = row < it.queries && !has_nan ? -infinity : infinity;
        length[row] = has_nan ? -1 : 0;
        if (!has_nan && !(query[row].bound < kLargestBound)) atomicMax(&overflow[0], 1);
      }
    }
    __syncthreads();

    const int steps_down = static_cast<int>((a.dim + kStep - 1) / kStep);
    const int64_t tiles = (it.end_row - it.begin_row + kFilterColumns - 1) / kFilterColumns;
    const int64_t steps = it.queries == 0 || overflow[0] ? 0 : tiles * steps_down;
    TileWalk next(it.begin_row, kFilterColumns, steps_down), now = next;
    const auto stage = [&](int64_t step) {
      stage_filter_bank<kStep>(a, it, vectors, next.start, next.chunk * kStep,
                               bank + step % 2 * kFilterColumns * kBankPitch<kStep>);
      next.advance();
    };
    const int first_place = a.exclude_self ? static_cast<int>(it.first_place) : INT_MIN;
    float scores[kRowTiles][kColumnTiles][4];
    float scale[kColumnTiles];
    if (steps > 0) stage(0);
    for (int64_t step = 0; step < steps; ++step, now.advance()) {
      const int start = now.start, down = now.chunk, column = down * kStep % kFilterDepth;
      // 2. Stage the columns of the queries for this step, and of the bank for the next.
      if (column == 0 && (step == 0 || a.dim > kFilterDepth)) block.load_queries(down * kStep);
      if (step + 1 < steps) {
        stage(step + 1);
        __pipeline_wait_prior(1);
      } else {
        __pipeline_wait_prior(0);
      }
      __syncthreads();
      if (overflow[0]) break;  // the same for all threads: set between the barriers below and above
      if (down == 0) {
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
          for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[t][n][i] = 0;
        block.load_row_scales(start, scale);
      }
      // 3. Products on tensor cores.
      const int left = static_cast<int>(a.dim) - down * kStep;
      block.multiply(scores, scale, bank + step % 2 * kFilterColumns * kBankPitch<kStep>, column,
                     left < kStep ? left : kStep);
      // 4. Scores above the threshold go to the lists. Full lists are cut down, and the threshold rises.
      const bool finished = down == steps_down - 1;
      if (finished) {
        block.for_each_score(scores, start, [&](int row, int index, float score) {
          const bool self = index == first_place + row;
          if (score >= threshold[row] && index < it.end_row && !self) {
            const int at = row * a.plan.capacity + atomicAdd(&length[row], 1);
            lists.score[at] = score;
            lists.index[at] = index;
          }
        });
      }
      __syncthreads();
      if (!finished) continue;
      for (int row = warp; row < it.queries; row += kFilterWarps) {
        const int n = length[row];
        if (n <= a.plan.capacity - kFilterColumns) continue;
        const float kth = warp_kth_bound(list_of(row).score, n, a.k);
        const int kept = warp_keep(list_of(row), n, kth - 2 * query[row].bound);
        if (lane != 0) continue;
        length[row] = kept;
        threshold[row] = kth - 2 * query[row].bound;
        if (kept > a.plan.capacity - kFilterColumns) atomicMax(&overflow[0], 1);
      }
    }
    __pipeline_wait_prior(0);
    __syncthreads();

    // 5. Canonical scores of the candidates, a warp per query.
    const bool resolved = !overflow[0];
    if (threadIdx.x == 0 && !resolved) atomicMax(&a.unresolved[it.tile], 1);
    for (int row = warp; resolved && row < it.queries; row += kFilterWarps) {
      const CandidateList<float> list = list_of(row);
      int n = length[row];
      if (n > a.k) n = warp_keep(list, n, warp_kth_bound(list.score, n, a.k) - 2 * query[row].bound);
      const QueryReader<float> reader(a, it.first_query + row, query[row].norm());
      for (int i = 0; i < n; i += kTogether) warp_score<Stored>(a, it, reader, list, i, n);
      if (n > 0) warp_sort(list, n);
      if (n > a.k) n = a.k;
      while (n > 0 && !(list.score[n - 1] > -std::numeric_limits<float>::infinity())) --n;
      warp_write_list(a, it.split, it.first_query + row, list, n);
    }
    if (threadIdx.x == 0) run[0].next += it.steps;
    __syncthreads();
  }
}

}  // namespace dgcl
