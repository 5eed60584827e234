"""Faults for the kernels that copy rows and add distances."""

from . import (
    BRANCH,
    GLOBAL,
    MASK,
    MERGE,
    OFFSET,
    PLACE,
    RACE,
    RANGE,
    READ,
    SHARED,
    TAIL,
    TIE,
    TURN,
    UNSET,
    VECTOR,
    WRITE,
    planted,
)

gather = planted("gather_rows", "gather_rows_kernel.cu")
gather_launch = planted("gather_rows", "gather_rows_kernel.cu")
layout = planted("gather_rows", "../math/pixel_layout.h")
push = planted("memory_push", "memory_push_kernel.cu")
push_launch = planted("memory_push", "memory_push_kernel.cu")
rows = planted("memory_push", "rows.cuh")
unit = planted("memory_push", "../math/unit_row.h")
sums = planted("silhouette_sums", "silhouette_sums_kernel.cu")

FAULTS = [
    # ---- gather_rows
    gather(READ, "  __syncthreads();\n", ""),
    gather(BRANCH, "  __syncthreads();\n", "  if (exists) __syncthreads();\n"),
    gather(
        BRANCH,
        "  __syncthreads();\n  if (channel + lane >= a.dim) return;\n",
        "  if (channel + lane >= a.dim) return;\n  __syncthreads();\n",
    ),
    gather(SHARED, "= tile[lane][i];", "= tile[lane + 1][i];"),
    gather(
        SHARED,
        "DGCL_SHARED(Word, tile, [kGatherTile][kGatherTile + 1])",
        "DGCL_SHARED(Word, tile, [kGatherTile - 1][kGatherTile + 1])",
    ),
    gather(UNSET, "    if (exists) tile[d]", "    if (exists && d > 0) tile[d]"),
    gather(GLOBAL, "  if (i >= a.num_pixels) return;\n", "", "address"),
    gather(GLOBAL, " && pixel + i < a.num_pixels", "", "address"),
    # Dropping "p < 0 ||" is no fault: the offset of such a pixel is negative as well.
    gather(TAIL, "  if (channel + lane >= a.dim) return;\n", ""),
    gather(TAIL, "p >= a.map_pixels", "p > a.map_pixels"),
    layout(
        PLACE, "(p - outer * layout.sizes[i]) * layout.strides[i]", "(p - outer * layout.sizes[i])"
    ),
    layout(PLACE, "return place + p *", "return p *"),
    gather(PLACE, "blockIdx.x % channel_tiles * kGatherTile", "0"),
    # each word size has its own direct kernel
    gather_launch(
        PLACE,
        "a.dim == 1) return launch_direct<Word>(a, stream);",
        "a.dim == 1) return launch_direct<uint32_t>(a, stream);",
    ),
    gather(
        TAIL,
        "row[d] = from < 0 ? all_ones<Word>() : maps[from + d];",
        "row[d] = maps[from + d];",
    ),
    gather(PLACE, "static_cast<Word>(~Word{0})", "static_cast<Word>(~0u)"),
    gather(PLACE, "make_uint4(~0u, ~0u, ~0u, ~0u)", "make_uint4(~0u, ~0u, ~0u, 0u)"),
    gather_launch(
        VECTOR,
        "  if (a.channel_stride != 1 || bytes % sizeof(uint4) != 0) return false;\n",
        "  if (a.channel_stride != 1) return false;\n",
        "address",
    ),
    gather_launch(TAIL, "  if (a.dim % per_word != 0) return false;\n", ""),
    gather_launch(
        PLACE, "    if (a.layout.strides[i] % per_word != 0) return false;\n", "    {}\n"
    ),
    layout(OFFSET, "p * layout.strides[i];", "static_cast<int>(p * layout.strides[i]);"),
    # ---- memory_push
    push(GLOBAL, "  if (item >= a.num_classes * most) return;\n", "", "address"),
    push(GLOBAL, "a.heads[c], a.capacity - 1) + i)", "a.heads[c], a.capacity) + i)"),
    push(GLOBAL, "clamped(a.row_counts[c], a.num_rows);\n  const", "a.row_counts[c];\n  const"),
    push(GLOBAL, "  if (c >= a.num_classes) return;\n", "", "address"),
    push(TAIL, "  if (i >= arriving) return;\n", ""),
    push(TAIL, "at < row_bytes; at", "at <= row_bytes; at"),
    push(PLACE, "copy(c, i, c * a.capacity + ", "copy(c, i, c * a.num_rows + "),
    push(PLACE, " + i) % a.capacity);", " + i));"),
    push(PLACE, "(arriving > a.capacity ? arriving - a.capacity : 0)", "0"),
    push(PLACE, "a.capacity - 1) + arriving) % a.capacity;", "a.capacity - 1) + arriving);"),
    push(PLACE, "+ c * group_stride + i", "+ i"),
    push(
        MASK,
        "if constexpr (kNormalize) norm =",
        "if (kNormalize && static_cast<int>(threadIdx.x % kWarp) < push.dim) norm =",
    ),
    push_launch(VECTOR, "aligned(push.ring, push.dim * bytes)", "aligned(push.ring, 0)"),
    push_launch(
        VECTOR,
        "aligned(push.rows.data, row_stride | group_stride)",
        "aligned(push.rows.data, 0)",
    ),
    rows(
        MERGE,
        "step = kWarp / 2; step > 0; step /= 2) partial",
        "step = kWarp / 4; step > 0; step /= 2) partial",
    ),
    rows(MERGE, "  largest = warp_reduce_max(largest);\n", ""),
    rows(
        MASK,
        "  if (!__all_sync(kFullWarp, finite)) return",
        "  if (!finite) return",
    ),
    rows(
        TAIL,
        "d = threadIdx.x % kWarp; d < dim; d += kWarp) sum",
        "d = threadIdx.x % kWarp; d <= dim; d += kWarp) sum",
    ),
    rows(
        TIE,
        "  if (largest == 0) return {};",
        "  if (largest < std::numeric_limits<T>::min()) return {};",
    ),
    rows(
        RANGE,
        "const int exponent = ilogb(largest);",
        "const int exponent = largest < std::numeric_limits<T>::min() ? 0 : ilogb(largest);",
    ),
    rows(RANGE, "scalbn(x(d), -exponent)", "x(d) * scalbn(T(1), -exponent)"),
    unit(RANGE, "? std::scalbn(x, -norm.exponent)", "? x * std::scalbn(T(1), -norm.exponent)"),
    # ---- silhouette_sums
    sums(READ, "        __syncthreads();\n#pragma", "#pragma"),
    sums(WRITE, "        }\n        __syncthreads();\n", "        }\n"),
    sums(
        BRANCH,
        "        }\n        __syncthreads();\n",
        "        }\n        if (first + x < end) __syncthreads();\n",
    ),
    sums(SHARED, "    to[d][r] =", "    to[d + 1][r] ="),
    sums(
        SHARED,
        "DGCL_SHARED(double, right, [kPairDepth]",
        "DGCL_SHARED(double, right, [kPairDepth - 1]",
    ),
    sums(UNSET, "    to[d][r] = exists ?", "    if (exists) to[d][r] = exists ?"),
    sums(GLOBAL, "first + r < end &&", "first + r <= end &&", "address"),
    sums(GLOBAL, "x == 0 && row < a.num_rows", "x == 0", "address"),
    sums(
        GLOBAL,
        "return clamped(a.offsets[c], a.num_features);",
        "return a.offsets[c];",
        "address",
    ),
    sums(TAIL, " && column + d < dim;", ";"),
    sums(TAIL, "        if (first + x + j * kPairSide < end)\n", ""),
    sums(PLACE, "a.sums[row * a.num_classes + c]", "a.sums[row * a.num_classes]"),
    sums(PLACE, "clamped_offset(a, c); first < end", "clamped_offset(a, 0); first < end"),
    sums(MERGE, "step = kPairSide / 2", "step = kPairSide / 4"),
    sums(
        MASK,
        "    for (int i = 0; i < kPairsPerSide; ++i) {\n#pragma unroll\n      for (int step",
        "    for (int i = 0; i < kPairsPerSide && x < 8; ++i) {\n#pragma unroll\n      for (int step",
    ),
    sums(TURN, "c < a.num_classes; c += gridDim.y", "c < a.num_classes; c += a.num_classes"),
    # the same values, written by two blocks
    sums(RACE, "c < a.num_classes; c += gridDim.y", "c < a.num_classes; ++c", "thread"),
]
