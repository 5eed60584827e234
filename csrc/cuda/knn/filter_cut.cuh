// Which queries and bank rows a block of the filter works on: an equal share for each block.
//
// A step is one tile of queries against one tile of bank rows. The steps of a query tile are numbered one after the
// other, tile by tile and class by class. Block b takes a run of them: [b * run, (b + 1) * run). A run may begin or end
// within a query tile. Each block writes a list of its own for these queries, and the last step merges the lists.
//
// With plan.splits == 1 there is one list per query. Then a block takes all query tiles that begin in its run.
#pragma once
#include "filter_tile.cuh"

namespace dgcl {

__device__ __forceinline__ int64_t steps_of_tile(const KnnClass& c) {
  return (c.rows + kFilterColumns - 1) / kFilterColumns;
}

struct ClassSteps {
  int64_t group;  // class
  int64_t first;  // its first step
};

// Finds the class of a step, by one warp. For a step beyond the last: num_classes, and the number of all steps.
__device__ inline ClassSteps warp_find_class(const KnnSearchArguments& a, int64_t step) {
  const int lane = threadIdx.x % kWarp;
  int64_t before = 0;
  for (int64_t start = 0; start < a.num_classes; start += kWarp) {
    int64_t own = 0;
    if (start + lane < a.num_classes) {
      const KnnClass c = knn_class(a, start + lane);
      own = (c.queries + kItemQueries - 1) / kItemQueries * steps_of_tile(c);
    }
    int64_t end = before + own;  // of this lane's class, once all lower lanes are added
#pragma unroll 1
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int64_t lower = __shfl_sync(kFullWarp, end, lane - distance);
      if (lane >= distance) end += lower - before;
    }
    const unsigned later = __ballot_sync(kFullWarp, step < end);
    const int64_t first = end - own;
    if (later) {
      const int owner = kWarp - __popc(later);
      return {start + owner, __shfl_sync(kFullWarp, first, owner)};
    }
    before = __shfl_sync(kFullWarp, end, kWarp - 1);
  }
  return {a.num_classes, before};
}

// What is left of a block's run, and the length of a run.
struct FilterRun {
  int64_t next, end, length;
};

__device__ inline FilterRun warp_filter_run(const KnnSearchArguments& a) {
  const int64_t steps = warp_find_class(a, INT64_MAX).first;
  FilterRun run;
  run.length = (steps + gridDim.x - 1) / gridDim.x;
  if (run.length < a.plan.least_steps) run.length = a.plan.least_steps;
  run.next = blockIdx.x * run.length;
  run.end = run.next + run.length < steps ? run.next + run.length : steps;
  return run;
}

struct FilterItem : KnnItem {
  int64_t tile;   // of queries, as knn_item numbers them
  int64_t steps;  // how far the block moves on
};

// The part of a query tile that a block takes next, by one warp.
__device__ inline FilterItem warp_filter_item(const KnnSearchArguments& a, const FilterRun& run) {
  const ClassSteps at = warp_find_class(a, run.next);
  const KnnClass c = knn_class(a, at.group);
  const int64_t per_tile = steps_of_tile(c), tile = (run.next - at.first) / per_tile;
  const int64_t done = run.next - at.first - tile * per_tile;  // steps of the tile before this one
  FilterItem it;
  it.group = at.group;
  it.first_place = tile * kItemQueries;
  it.first_query = c.first_query + it.first_place;
  it.queries = static_cast<int>(clamped(c.queries - it.first_place, kItemQueries));
  it.tile = first_tile(c, at.group) + tile;
  it.steps = per_tile - done;
  it.split = 0;
  if (a.plan.splits > 1) {
    if (it.steps > run.end - run.next) it.steps = run.end - run.next;
    it.split = static_cast<int32_t>(blockIdx.x - (run.next - done) / run.length);
  } else if (done > 0) {
    it.queries = 0;  // the tile begins in another run
  }
  const int64_t end_row = (done + it.steps) * kFilterColumns;
  it.begin_row = static_cast<int32_t>(done * kFilterColumns);
  it.end_row = static_cast<int32_t>(end_row < c.rows ? end_row : c.rows);
  return it;
}

}  // namespace dgcl
