"""Faults for the gradient of the nearest-neighbour search."""

from . import (
    BRANCH,
    GLOBAL,
    LAUNCH,
    MASK,
    PLACE,
    RACE,
    RANGE,
    TAIL,
    TURN,
    UNSET,
    planted,
)

gradient = planted("knn_topk_backward", "knn_topk_backward_kernel.cu")
gradient_launch = planted("knn_topk_backward", "knn_topk_backward_kernel.cu")
gradient_norms = planted("knn_topk_backward", "rows.cuh")
unit = planted("knn_topk_backward", "../math/unit_row.h")

FAULTS = [
    gradient(MASK, "unsigned left = __ballot_sync(kFullWarp, term.used);",
             "unsigned left = term.used ? __ballot_sync(kFullWarp, true) : 0;"),
    gradient(BRANCH, "for (int64_t first = lane; first - lane < dim;", "for (int64_t first = lane; first < dim;"),
    gradient_norms(RACE, "  if (threadIdx.x % kWarp == 0) norms[row] = norm;", "  norms[row] = norm;", "thread"),
    gradient(RACE, "  T* sum = static_cast<T*>(a.sums) + warp * a.dim;\n  const RowNorm<T>* bank_norms",
             "  T* sum = static_cast<T*>(a.sums);\n  const RowNorm<T>* bank_norms", "thread"),
    gradient(GLOBAL, "  if (pair >= a.num_queries * a.k) return;\n", "", "address"),
    gradient_norms(GLOBAL, "  if (row >= groups * per_group) return;\n", "", "address"),
    gradient(GLOBAL, "      if (first + i * kWarp < dim) sum", "      sum", "address"),
    gradient(UNSET, "      store_zeros<T>(a.dim, a.dL_dbank, a.bank.dtype, row);\n", ""),
    gradient(UNSET, "      store_zeros<T>(a.dim, a.dL_dqueries, a.queries.dtype, query);\n", ""),
    gradient(TAIL, "start + lane < count ? term_at(start + lane) : PairTerm<T>{};", "term_at(start + lane);"),
    gradient(TAIL, "            if (used[p]) total[i]", "            total[i]"),
    gradient(PLACE, "int64_t key = a.num_classes * a.bank_rows;", "int64_t key = 0;"),
    gradient(PLACE, "query < a.offsets[0] || ", ""),
    gradient(PLACE, " || query >= a.offsets[a.num_classes]", ""),
    gradient(PLACE, "a.offsets[c + 1] <= query;", "a.offsets[c + 1] < query;"),
    gradient(PLACE, "a.sorted_keys[pair] < key;", "a.sorted_keys[pair] <= key;"),
    gradient(TURN, "query < a.num_queries; query += static_cast<int64_t>(gridDim.x) * kGradientWarps",
             "query < a.num_queries; query += a.num_queries"),
    gradient(TURN, "row < rows; row += static_cast<int64_t>(gridDim.x) * kGradientWarps", "row < rows; row += rows"),
    unit(RANGE, "? std::scalbn(x, -norm.exponent)", "? x * std::scalbn(T(1), -norm.exponent)"),
    unit(RANGE, "? std::scalbn(gradient, -norm.exponent)", "? gradient * std::scalbn(T(1), -norm.exponent)"),
    gradient_launch(LAUNCH, "blocks_for(groups * per_group, kRowsPerBlock)", "blocks_for(per_group, kRowsPerBlock)"),
    gradient_launch(LAUNCH, "blocks_for(a.num_queries * a.k, kGradientThreads)", "blocks_for(a.num_queries, kGradientThreads)"),
]  # fmt: skip
