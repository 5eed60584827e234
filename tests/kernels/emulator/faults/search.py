"""Faults for the nearest-neighbour kernels, without the filter."""

from . import (
    ALIGNMENT,
    BINDING,
    BOUND,
    BRANCH,
    GLOBAL,
    LAUNCH,
    MASK,
    MERGE,
    OFFSET,
    PLACE,
    RACE,
    RANGE,
    READ,
    SHARED,
    SYNCWARP,
    TAIL,
    TIE,
    TURN,
    UNSET,
    VECTOR,
    WAIT,
    WRITE,
    planted,
)

candidates = planted("knn_topk", "knn/candidates.cuh")
density = planted("knn_density", "knn_density_kernel.cu")
exact = planted("knn_topk", "knn/exact.cuh")
filter_ = planted("knn_topk", "knn/filter.cuh")
items = planted("knn_topk", "knn/items.cuh")
launch = planted("knn_topk", "knn/search.cu")
density_launch = planted("knn_density", "knn/search.cu")
order = planted("knn_topk", "../math/score.h")
merge = planted("knn_topk", "knn/merge.cuh")
norms = planted("knn_topk", "rows.cuh")
tile = planted("knn_topk", "knn/filter_tile.cuh")
topk = planted("knn_topk", "knn_topk_kernel.cu")
rows = planted("knn_topk", "rows.cuh")
search_binding = planted("knn_topk", "knn/search_binding.cpp")
density_binding = planted("knn_density", "knn/search_binding.cpp")
topk_launch = planted("knn_topk", "knn_topk_kernel.cu")

FAULTS = [
    # ---- bindings and 64-bit offsets
    search_binding(BINDING, "check_launch(op, launch_knn_search(a_, bytes.zeros, stream));",
                   "launch_knn_search(a_, bytes.zeros, stream);"),
    launch(BINDING, "cudaMemsetAsync(a.list_length, 0, static_cast<size_t>(zeros), static_cast<cudaStream_t>(stream));",
           "cudaMemsetAsync(a.list_length, 0, static_cast<size_t>(zeros), nullptr);"),
    topk_launch(BINDING, "knn_topk_kernel<float>, grid, dim3(kRowThreads), 0, stream,", "knn_topk_kernel<float>, grid, dim3(kRowThreads), 0, nullptr,"),
    # ---- parts of the scratch tensor
    density_binding(UNSET, "const int64_t zeros = parts.bytes();", "const int64_t zeros = 0;"),
    # lengths that are not cleared cannot show: NaN bounds send every item to the exact kernel
    density_launch(UNSET, "    cudaMemsetAsync(a.list_length, 0, static_cast<size_t>(zeros), static_cast<cudaStream_t>(stream));\n", ""),
    search_binding(GLOBAL, "a.list_length, lists,", "a.list_length, lists - 1,", "address"),
    search_binding(GLOBAL, "a.lengths, a.num_classes,", "a.lengths, a.num_classes - 1,", "address"),
    search_binding(GLOBAL, "a.unresolved, plan.items / plan.splits,", "a.unresolved, plan.items / plan.splits - 1,", "address"),
    search_binding(GLOBAL, "a.mean, a.num_classes * a.dim,", "a.mean, a.num_classes * a.dim - 1,", "address"),
    search_binding(GLOBAL, "a.bias, rows,", "a.bias, rows - 1,", "address"),
    search_binding(GLOBAL, "a.bank_norms, rows,", "a.bank_norms, rows - 1,", "address"),
    search_binding(GLOBAL, "a.candidate_score, candidates,", "a.candidate_score, candidates / 2,", "address"),
    search_binding(GLOBAL, "a.candidate_index, candidates,", "a.candidate_index, candidates / 2,", "address"),
    search_binding(GLOBAL, "a.list_score, lists * a.k,", "a.list_score, lists * a.k - 1,", "address"),
    search_binding(GLOBAL, "a.list_index, lists * a.k,", "a.list_index, lists * a.k - 1,", "address"),
    search_binding(PLACE, "    bytes_ += count * element_bytes;\n", ""),
    search_binding(ALIGNMENT, "kAlignment = 256;", "kAlignment = 4;", "address"),
    rows(OFFSET, "begin(group * rows.group_stride + i * rows.row_stride)", "begin(static_cast<int>(group * rows.group_stride + i * rows.row_stride))"),
    filter_(OFFSET, "index * a.bank.row_stride;", "static_cast<int>(index * a.bank.row_stride);"),
    exact(OFFSET, "(start + first) * a.bank.row_stride + depth + d;", "static_cast<int>((start + first) * a.bank.row_stride) + depth + d;"),
    tile(OFFSET, "bank + (start + first) * a.bank.row_stride + depth + d;", "bank + static_cast<int>((start + first) * a.bank.row_stride) + depth + d;"),
    # ---- candidates: lists in global memory that one warp sorts and cuts down
    candidates(SYNCWARP, "  __syncwarp();\n  for (int run = 2;", "  for (int run = 2;", "thread"),
    candidates(SYNCWARP, "      __syncwarp();\n    }\n  }\n}", "    }\n  }\n}", "thread"),
    candidates(SYNCWARP, "    __syncwarp();  // all reads come before any write\n", "", "thread"),
    candidates(SYNCWARP, "    kept += __popc(keepers);\n    __syncwarp();\n", "    kept += __popc(keepers);\n", "thread"),
    candidates(MASK, "__ballot_sync(kFullWarp, keep)", "(i < n ? __ballot_sync(kFullWarp, keep) : 0u)"),
    candidates(UNSET, "for (int i = n + lane; i < size;", "for (int i = n + 1 + lane; i < size;"),
    candidates(PLACE, "((1u << lane) - 1)", "((2u << lane) - 1)"),
    candidates(TAIL, "while (size < n) size *= 2;", "while (size < n - 1) size *= 2;"),
    order(TIE, "score == other_score && index < other_index", "score == other_score && index > other_index"),
    order(TIE, "return score > other_score || (", "return score < other_score || ("),
    candidates(MERGE, "for (int run = 2; run <= size; run *= 2)", "for (int run = 2; run < size; run *= 2)"),
    candidates(MERGE, "  low = -warp_reduce_max(-low);\n", ""),
    candidates(MERGE, "low = score[i] < low ? score[i] : low;", "low = score[i];"),
    candidates(BOUND, "if (warp_reduce_sum(reached) >= k)", "if (warp_reduce_sum(reached) > 0)"),
    # ---- exact search
    exact(READ, "      __syncthreads();\n\n      T sums", "      T sums"),
    exact(READ, "        __syncthreads();\n\n        if (depth == 0)", "        if (depth == 0)"),
    exact(WRITE, "        __syncthreads();\n        if (!finished) continue;\n", "        if (!finished) continue;\n"),
    exact(
        WRITE,
        "        __syncthreads();\n        if (!finished) continue;\n",
        "        if (!finished) continue;\n        __syncthreads();\n",
        "thread",
    ),
    exact(WRITE, "      __syncthreads();\n    }\n  }\n}", "    }\n  }\n}", "thread"),
    exact(BRANCH, "        __syncthreads();\n\n        if (depth == 0)",
          "        if (warp_row < rows) __syncthreads();\n\n        if (depth == 0)"),
    exact(MASK, "          reduce_pairs(sums);\n", "          if (lane < 24) reduce_pairs(sums);\n"),
    exact(MASK, "__shfl_xor_sync(kFullWarp, sent, kStep)", "__shfl_xor_sync(kFullWarp >> 1, sent, kStep)"),
    exact(RACE, "const int at = atomicAdd(&length[row], 1);", "const int at = length[row]++;", "thread"),
    exact(SYNCWARP, "          }\n          __syncwarp();\n        }\n", "          }\n        }\n", "thread"),
    exact(SHARED, "DGCL_SHARED(T, threshold, [kExactRows]);", "DGCL_SHARED(T, threshold, [kExactRows - 1]);"),
    exact(SHARED, "x[i] = q[i * kDepth + d];", "x[i] = q[(i + 1) * kDepth + d];"),
    exact(
        UNSET,
        "        tile[row * kDepth + d] = real && d < columns ? reader(depth + d) : T(0);",
        "        if (real && d < columns) tile[row * kDepth + d] = reader(depth + d);",
    ),
    exact(
        UNSET,
        "query_tile[row * kDepth + d] = row < rows && d < columns ? reader(depth + d) : T(0);",
        "if (row < rows && d < columns) query_tile[row * kDepth + d] = reader(depth + d);",
    ),
    exact(GLOBAL, "exists ? from : bank, exists ? real : 0);", "exists ? from : bank, exists ? 16 : 0);", "address"),
    exact(GLOBAL, "if (length[row] <= a.plan.capacity - kColumns) continue;", "continue;"),
    exact(ALIGNMENT, "DGCL_DYNAMIC_SHARED(T, shared);", "DGCL_DYNAMIC_SHARED(T, begin);\n  T* shared = begin + 1;"),
    exact(WAIT, "          __pipeline_wait_prior(1);\n", "          __pipeline_wait_prior(2);\n"),
    exact(WAIT, "          __pipeline_wait_prior(0);\n", ""),
    exact(WAIT, "  __pipeline_commit();\n", ""),
    exact(TAIL, "if (index < it.end_row && ", "if ("),
    exact(PLACE, "!(a.exclude_self && index == place) && ", ""),
    exact(PLACE, "warp_write_list(a, it.split, it.first_query + half + row", "warp_write_list(a, it.split, it.first_query + row"),
    exact(PLACE, "v[i] = kept + __shfl_xor", "v[i] = sent + __shfl_xor"),
    exact(TIE, "threshold[row] = list_of(row).score[a.k - 1];", "threshold[row] = list_of(row).score[0];"),
    exact(TURN, "item < items; item += gridDim.x", "item < items; item += items"),
    # ---- which class, queries and rows a block has
    items(GLOBAL, "return clamped(a.offsets[c], a.num_queries);", "return a.offsets[c];", "address"),
    items(GLOBAL, "? clamped(a.counts[c], a.bank_rows) :", "? a.counts[c] :", "address"),
    norms(GLOBAL, "  if (row >= groups * per_group) return;\n", "", "address"),
    norms(RANGE, "const int exponent = ilogb(largest);",
          "const int exponent = largest < std::numeric_limits<T>::min() ? 0 : ilogb(largest);"),
    norms(RACE, "  if (threadIdx.x % kWarp == 0) norms[row] = norm;", "  norms[row] = norm;", "thread"),
    items(TAIL, "split_end < c.rows ? split_end : c.rows", "split_end"),
    items(TAIL, "  if (a.exclude_self && end > begin + rows) end = begin + rows;", "  "),
    items(PLACE, "it.first_place < 0 ? 0 : c.queries - it.first_place;", "c.queries - it.first_place;"),
    items(PLACE, "kItemQueries + c + 1 <= tile", "kItemQueries + c + 1 < tile"),
    items(PLACE, "(tile - first_tile(c, group))", "(tile - group)"),
    # ---- merging the lists of all parts
    merge(MERGE, "step = kWarp / 2; step > 0", "step = kWarp / 4; step > 0"),
    merge(MASK, "if (__any_sync(kFullWarp, length < 0)) return -1;", "if (length < 0) return -1;"),
    merge(GLOBAL, "const int length = lane < a.plan.splits ? a.list_length[lane * a.num_queries + query] : 0;",
          "const int length = a.list_length[lane * a.num_queries + query];", "address"),
    merge(TIE, "if (index == own_index) ++head;", "if (score == own_score) ++head;"),
    merge(PLACE, "return sum < a.k ? sum : a.k;", "return sum;"),
    # ---- last steps
    topk(GLOBAL, "  if (query >= a.search.num_queries) return;\n", "", "address"),
    topk(RACE, "    if (rank % kWarp != lane) return;\n", "", "thread"),
    topk(UNSET, "(count < 0 ? 0 : count) + lane; rank < a.k", "(count < 0 ? 0 : count) + lane + 1; rank < a.k"),
    density(GLOBAL, "  if (query >= a.search.num_queries) return;\n", "", "address"),
    density(RACE, "    if (lane == 0) static_cast", "    static_cast", "thread"),
    density(MASK, "__shfl_sync(kFullWarp, weight, rank % kWarp)", "__shfl_sync(kFullWarp >> 1, weight, rank % kWarp)"),
    density(PLACE, "if (rank % kWarp == 0) weight", "if (rank == 0) weight"),
    density(PLACE, "rank + lane + 1)", "rank + lane)"),
    density(PLACE, "[output * a.search.num_queries + query]", "[query]"),
    # ---- launch
    launch(LAUNCH, "    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem));",
           "    error = cudaSuccess;"),
    launch(LAUNCH, "key(device, reinterpret_cast", "key(0, reinterpret_cast"),
    launch(LAUNCH, "reinterpret_cast<const void*>(kernel));", "nullptr);"),
    launch(LAUNCH, "(knn_exact_kernel<T, false>), grid, block, kExactShared<T>,", "(knn_exact_kernel<T, false>), grid, block, kExactShared<T> - 1024,"),
    launch(LAUNCH, "F::kShared, stream, a, is_aligned", "F::kShared - 16, stream, a, is_aligned"),
    launch(LAUNCH, "dim3(kFilterThreads),", "dim3(kFilterThreads / 2),"),
    launch(LAUNCH, "smem + compiled.sharedSizeBytes <= static_cast<size_t>(most)", "true"),
    launch(LAUNCH, "a.plan.wide_steps = wide >= narrow;", "a.plan.wide_steps = true;"),
    # a smaller step where a wide one fits is no fault
    launch(VECTOR, "row_stride * size % 16 == 0 &&\n         rows.group", "row_stride >= 0 &&\n         rows.group"),
    launch(VECTOR, "reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && ", ""),
    launch(GLOBAL, "2 * a.k + kFilterColumns + kFilterColumns / 2", "a.k"),
    launch(PLACE, "DGCL_LAUNCH(row_norms_kernel<T>, blocks_for(a.num_classes * a.bank_rows,",
           "DGCL_LAUNCH(row_norms_kernel<T>, blocks_for(a.bank_rows,"),
    launch(PLACE, "rows = blocks_for(a.num_classes * a.bank_rows,", "rows = blocks_for(a.bank_rows,"),
    launch(PLACE, "plan.split_rows = quotient_up(a.bank_rows, plan.splits);", "plan.split_rows = a.bank_rows / plan.splits;"),
    launch(PLACE, "plan.items = tiles * plan.splits;", "plan.items = tiles;"),
]  # fmt: skip
