"""Faults for the gradient of gather_rows."""

from . import (
    BINDING,
    GLOBAL,
    LAUNCH,
    MASK,
    MERGE,
    PLACE,
    RACE,
    TAIL,
    TURN,
    UNSET,
    planted,
)

OP = "gather_rows_backward"
scatter = planted(OP, "gather_rows_backward_kernel.cu")
binding = planted(OP, "gather_rows_backward_binding.cpp")

WALK = (
    "    const bool same = start + lane <= highest && a.pixels[start + lane] == pixel;\n"
    "    for (unsigned left = __ballot_sync(kFullWarp, same); left; left &= left - 1) {\n"
    "      Stored y[kScatterColumns];\n"
    "      load_row_columns(a, start + __ffs(left) - 1, first, y);\n"
)
BACKWARDS = WALK.replace("start + lane", "start + kWarp - 1 - lane").replace(
    "start + __ffs(left) - 1", "start + kWarp - __ffs(left)"
)

FAULTS = [
    # ---- binding
    binding(BINDING, "launch_gather_rows_backward(a, device.stream())", f"launch_{OP}(a, nullptr)"),
    binding(
        BINDING,
        'check_launch("gather_rows_backward", launch_gather_rows_backward(a, device.stream()));',
        "launch_gather_rows_backward(a, device.stream());",
    ),
    binding(UNSET, "torch::stable::fill_(owners, -1);", "torch::stable::fill_(owners, 0);"),
    binding(UNSET, "new_zeros(dL_drows, shape)", "new_empty(dL_drows, shape)"),
    binding(GLOBAL, "{2, num_pixels}", "{1, num_pixels}", "address"),
    binding(PLACE, "rows = torch::stable::contiguous(dL_drows)", "rows = dL_drows"),
    binding(PLACE, "dense_pixels = torch::stable::contiguous(pixels)", "dense_pixels = pixels"),
    # ---- mark_rows_kernel
    scatter(
        RACE,
        "atomicMin(a.lowest + pixel, static_cast<uint32_t>(row));",
        "if (row < a.lowest[pixel]) a.lowest[pixel] = static_cast<uint32_t>(row);",
        "thread",
    ),
    scatter(
        RACE,
        "atomicMax(a.highest + pixel, static_cast<int32_t>(row));",
        "if (row > a.highest[pixel]) a.highest[pixel] = static_cast<int32_t>(row);",
        "thread",
    ),
    scatter(MERGE, "  atomicMax(a.highest + pixel, static_cast<int32_t>(row));\n", ""),
    scatter(MERGE, "  atomicMin(a.lowest + pixel, static_cast<uint32_t>(row));\n", ""),
    scatter(GLOBAL, "+ threadIdx.x;\n  if (row >= a.num_rows) return;\n", "+ threadIdx.x;\n"),
    scatter(GLOBAL, "  if (!is_inside(a, pixel)) return;\n", "", "address"),
    scatter(TAIL, "pixel < a.num_images * a.area;", "pixel <= a.num_images * a.area;", "address"),
    scatter(TAIL, "pixel < a.num_images * a.area;", "pixel < a.area;"),
    scatter(GLOBAL, "return pixel >= 0 && ", "return ", "address"),
    scatter(PLACE, "static_cast<int64_t>(blockIdx.x) * kScatterThreads", "int64_t(0)"),
    # ---- scatter_rows_kernel
    # Dropping "if (highest != row)" is no fault: a single row is then widened and narrowed, which changes only NaNs.
    scatter(
        GLOBAL,
        "own_warp<kScatterWarps>();\n  if (row >= a.num_rows) return;\n",
        "own_warp<kScatterWarps>();\n",
        "address",
    ),
    scatter(GLOBAL, "!is_inside(a, pixel) || ", "", "address"),
    scatter(PLACE, " || a.lowest[pixel] != row", ""),
    scatter(RACE, " || a.lowest[pixel] != row", " || a.highest[pixel] < row", "thread"),
    scatter(PLACE, "image * a.dim * a.area", "image * a.area"),
    scatter(PLACE, "(pixel - image * a.area)", "pixel"),
    scatter(PLACE, "(first + i * kWarp) * a.area", "(first + i * kWarp)"),
    scatter(PLACE, "+ row * a.dim;", "+ row;"),
    scatter(TAIL, "      if (first + i * kWarp < a.dim) out[", "      out["),
    scatter(GLOBAL, "    if (first + i * kWarp < a.dim) x[i] = from", "    x[i] = from", "address"),
    scatter(TURN, "first += kScatterColumns * kWarp)", "first += a.dim + kScatterColumns * kWarp)"),
    # ---- the search for other rows
    scatter(MASK, "__ballot_sync(kFullWarp, same)", "__ballot_sync(kFullWarp >> 1, same)"),
    scatter(MASK, "first - lane < a.dim;", "first < a.dim;"),
    scatter(MERGE, "left; left &= left - 1)", "left; left = 0)"),
    scatter(MERGE, WALK, BACKWARDS),
    scatter(
        MERGE,
        "sum[i] += widen(y[i]);",
        "narrow(sum[i] + widen(y[i]), y[i]), sum[i] = widen(y[i]);",
    ),
    scatter(PLACE, "start = lowest + 1;", "start = lowest;"),
    scatter(TAIL, "start <= highest; start", "start < highest; start"),
    scatter(TURN, "start <= highest; start += kWarp", "start <= highest; start += a.num_rows"),
    scatter(GLOBAL, "start + lane <= highest && ", "", "address"),
    scatter(PLACE, " && a.pixels[start + lane] == pixel;", ";"),
    # ---- launch
    scatter(LAUNCH, "blocks_for(a.num_rows, kScatterThreads), dim3", "dim3(1), dim3"),
    scatter(LAUNCH, "blocks_for(a.num_rows, kScatterWarps)", "dim3(1)"),
    scatter(PLACE, "launch_scatter<__half>(a, stream)", "launch_scatter<__nv_bfloat16>(a, stream)"),
    scatter(
        BINDING,
        "dim3(kScatterThreads), 0, stream, a);\n  switch",
        "dim3(kScatterThreads), 0, nullptr, a);\n  switch",
    ),
    scatter(
        BINDING,
        "dim3(kScatterThreads), 0, stream, a);\n}",
        "dim3(kScatterThreads), 0, nullptr, a);\n}",
    ),
    scatter(BINDING, "return static_cast<int>(cudaGetLastError());", "return 0;"),
]
