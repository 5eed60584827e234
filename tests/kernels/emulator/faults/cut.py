"""Faults for the cut of the search's filter over the blocks.

A longer run is no fault, if all runs are.

Steps that two blocks take are no fault either: a merge counts equal rows of two lists once.
"""

from . import GLOBAL, MASK, MERGE, PLACE, RACE, TAIL, TURN, planted

cut = planted("knn_topk", "knn/filter_cut.cuh")
exact = planted("knn_topk", "knn/exact.cuh")
filter_ = planted("knn_topk", "knn/filter.cuh")
launch = planted("knn_topk", "knn/search.cu")
merge = planted("knn_topk", "knn/merge.cuh")

FAULTS = [
    cut(TAIL, "(c.rows + kFilterColumns - 1) / kFilterColumns", "c.rows / kFilterColumns"),
    cut(TAIL, "(c.queries + kItemQueries - 1) / kItemQueries *", "c.queries / kItemQueries *"),
    cut(TAIL, "end_row < c.rows ? end_row : c.rows", "end_row"),
    cut(GLOBAL, "if (start + lane < a.num_classes) {", "{", "address"),
    cut(MASK, "__shfl_sync(kFullWarp, end, lane - distance);",
        "lane >= distance ? __shfl_sync(kFullWarp, end, lane - distance) : 0;"),
    cut(MASK, "__ballot_sync(kFullWarp, step < end)", "__ballot_sync(kFullWarp >> 1, step < end)"),
    cut(PLACE, "if (lane >= distance) end +=", "if (lane > distance) end +="),
    cut(PLACE, "end += lower - before;", "end += lower;"),
    cut(PLACE, "__ballot_sync(kFullWarp, step < end)", "__ballot_sync(kFullWarp, step <= end)"),
    cut(PLACE, "return {start + owner,", "return {owner,"),
    cut(PLACE, "    before = __shfl_sync(kFullWarp, end, kWarp - 1);\n", ""),
    cut(PLACE, "run.length = (steps + gridDim.x - 1) / gridDim.x;", "run.length = steps / gridDim.x;"),
    cut(PLACE, "run.next = blockIdx.x * run.length;", "run.next = blockIdx.x * run.length + 1;"),
    cut(PLACE, "steps ? run.next + run.length :", "steps ? run.next + run.length - 1 :"),
    cut(PLACE, "  if (run.length < a.plan.least_steps) run.length = a.plan.least_steps;\n", ""),
    cut(PLACE, "blockIdx.x - (run.next - done) / run.length", "blockIdx.x - run.next / run.length"),
    cut(PLACE, "    it.queries = 0;  // the tile begins in another run\n", ""),
    cut(PLACE, "it.tile = first_tile(c, at.group) + tile;", "it.tile = tile;"),
    cut(PLACE, "it.first_place = tile * kItemQueries;", "it.first_place = 0;"),
    filter_(TURN, "run[0].next += it.steps;", "run[0].next = run[0].end;"),
    filter_(RACE, "atomicMax(&a.unresolved[it.tile], 1);", "a.unresolved[it.tile] = 1;", "thread"),
    filter_(MERGE, "if (threadIdx.x == 0 && !resolved) atomicMax(&a.unresolved[it.tile], 1);",
            "if (threadIdx.x == 0) a.unresolved[it.tile] = !resolved;"),
    exact(PLACE, "!a.unresolved[item / a.plan.splits]", "!a.unresolved[item % (items / a.plan.splits)]"),
    merge(MERGE, "if (a.plan.splits == 1) {", "if (a.plan.splits <= 2) {"),
    launch(PLACE, "quotient_up(steps - 1, plan.splits - 1));", "steps / plan.splits);"),
    launch(PLACE, "quotient_up(steps - 1, run) + 1,", "quotient_up(steps, run),"),
]  # fmt: skip
