#include "../../../csrc/cuda/compat.cuh"
#include "filter_probe.h"
// The search has these kernels, too. Copies of its objects are linked together with this one.
#undef __global__
#define __global__ static
#include "../../../csrc/cuda/knn/filter.cuh"

namespace dgcl {
namespace {

constexpr int kStep = kNarrowStep;

// Phases 1 to 3 of knn_filter_kernel, from the same functions. Nothing is pipelined, and every score is stored.
__global__ void filter_probe_kernel(KnnSearchArguments a, float* scores, float* bounds) {
  DGCL_DYNAMIC_SHARED(unsigned char, shared);
  DGCL_SHARED(FilterQuery, query, [kItemQueries]);
  DGCL_SHARED(float, bank_scale, [1]);
  DGCL_SHARED(KnnItem, item, [1]);
  if (threadIdx.x == 0) item[0] = knn_item(a, blockIdx.x);
  __syncthreads();
  const KnnItem& it = item[0];
  __half* queries = reinterpret_cast<__half*>(shared);
  float* bank = reinterpret_cast<float*>(queries + kItemQueries * kQueryPitch);
  const FilterBlock<float, kStep> block{a,     it,        queries, bank + 2 * kFilterColumns * kBankPitch<kStep>,
                                        query, bank_scale};
  for (int row = threadIdx.x / kWarp; row < kItemQueries; row += kFilterWarps) {
    block.measure_query(row);
    if (threadIdx.x % kWarp == 0 && row < it.queries) bounds[it.first_query + row] = query[row].bound;
  }
  __syncthreads();
  if (it.queries == 0) return;
  for (int start = it.begin_row; start < it.end_row; start += kFilterColumns) {
    float sums[kRowTiles][kColumnTiles][4] = {}, scale[kColumnTiles];
    block.load_row_scales(start, scale);
    for (int depth = 0; depth < a.dim; depth += kStep) {
      if (depth % kFilterDepth == 0) block.load_queries(depth);
      stage_filter_bank<kStep>(a, it, false, start, depth, bank);
      __pipeline_wait_prior(0);
      __syncthreads();
      block.multiply(sums, scale, bank, depth % kFilterDepth, kStep);
      __syncthreads();
    }
    block.for_each_score(sums, start, [&](int row, int index, float score) {
      if (row < it.queries && index < it.end_row) scores[(it.first_query + row) * a.bank_rows + index] = score;
    });
  }
}

}  // namespace

FilterScores filter_scores(const std::vector<float>& queries, const std::vector<float>& bank, int64_t dim, bool l2,
                           bool unit) {
  KnnSearchArguments a{};
  a.dim = dim;
  a.num_queries = static_cast<int64_t>(queries.size()) / dim;
  a.bank_rows = static_cast<int64_t>(bank.size()) / dim;
  a.num_classes = 1;
  a.queries = {queries.data(), dim, 0, Dtype::float32};
  a.bank = {bank.data(), dim, 0, Dtype::float32};
  a.k = 1;
  a.normalize_queries = a.normalize_bank = unit;
  a.l2 = l2;
  a.plan.split_rows = a.bank_rows;

  FilterScores found;
  found.scores.resize(a.num_queries * a.bank_rows);
  found.bounds.resize(a.num_queries);
  found.mean.resize(dim);
  std::vector<float> bias(a.bank_rows);
  std::vector<RowNorm<float>> norms(a.bank_rows);
  BankLengths lengths{};
  a.bank_norms = norms.data();
  a.mean = found.mean.data();
  a.bias = bias.data();
  a.lengths = &lengths;

  void* stream = cuda_emulator::current_stream();
  const dim3 per_row = blocks_for(a.bank_rows, kRowsPerBlock);
  if (unit)
    DGCL_LAUNCH(row_norms_kernel<float>, per_row, dim3(kRowThreads), 0, stream, a.bank, 1, a.bank_rows, nullptr, dim,
                norms.data());
  DGCL_LAUNCH(knn_mean_kernel<float>, blocks_for(dim, kWarp), dim3(kMeanThreads), 0, stream, a);
  DGCL_LAUNCH(knn_bank_lengths_kernel<float>, per_row, dim3(kRowThreads), 0, stream, a);
  cudaFuncSetAttribute(filter_probe_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(kFilterShared<float, kStep>));
  DGCL_LAUNCH(filter_probe_kernel, blocks_for(a.num_queries / kItemQueries + 1, 1), dim3(kFilterThreads),
              (kFilterShared<float, kStep>), stream, a, found.scores.data(), found.bounds.data());
  return found;
}

}  // namespace dgcl
