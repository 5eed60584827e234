"""Faults for the kernels that count, copy and add distances."""

from .faults import Fault

READ = "missing barrier, read too early"
WRITE = "missing barrier, written too early"
BRANCH = "barrier in a branch"
MASK = "mask too wide"
SYNCWARP = "missing __syncwarp"
RACE = "race between blocks or warps"
SHARED = "index in shared memory"
GLOBAL = "out of bounds of global memory"
UNSET = "uninitialised memory"
VECTOR = "misaligned vector"
ALIGNMENT = "alignment lowered"
COPY = "wait for cp.async"
TAIL = "missing guard of the tail"
PLACE = "wrong row, class or offset"
MERGE = "part of a merge dropped"
TIE = "ties and comparisons"
LAUNCH = "launch"

COUNTS, COUNTS_LAUNCH = "class_counts_kernel.cuh", "class_counts_launch.cu"
GATHER, GATHER_LAUNCH = "gather_rows_kernel.cuh", "gather_rows_launch.cu"
PUSH, PUSH_LAUNCH = "memory_push_kernel.cuh", "memory_push_launch.cu"
SUMS = "silhouette_sums_kernel.cuh"


def class_counts(kind, old, new, by="plain", file=COUNTS):
    return Fault(kind, "class_counts", file, old, new, by)


def gather_rows(kind, old, new, by="plain", file=GATHER):
    return Fault(kind, "gather_rows", file, old, new, by)


def memory_push(kind, old, new, by="plain", file=PUSH):
    return Fault(kind, "memory_push", file, old, new, by)


def silhouette_sums(kind, old, new, by="plain", file=SUMS):
    return Fault(kind, "silhouette_sums", file, old, new, by)


FAULTS = [
    # ---- class_counts
    class_counts(READ, "    __syncthreads();\n  }\n", "  }\n"),
    class_counts(READ, "  if (!shared) return;\n  __syncthreads();\n", "  if (!shared) return;\n"),
    class_counts(
        BRANCH,
        "  if (!shared) return;\n  __syncthreads();\n",
        "  if (!shared) return;\n  if (threadIdx.x < a.num_classes) __syncthreads();\n",
    ),
    class_counts(
        SHARED,
        "c < a.num_classes; c += blockDim.x) block_counts[c] = 0;",
        "c <= a.num_classes; c += blockDim.x) block_counts[c] = 0;",
    ),
    class_counts(
        UNSET,
        "(int64_t c = threadIdx.x; c < a.num_classes; c += blockDim.x) block_counts[c] = 0;",
        "(int64_t c = threadIdx.x + 1; c < a.num_classes; c += blockDim.x) block_counts[c] = 0;",
    ),
    class_counts(RACE, "atomicAdd(&block_counts[c], 1u);", "block_counts[c] += 1u;", "thread"),
    class_counts(RACE, "atomicAdd(&counts[c], 1ull);", "counts[c] += 1ull;", "thread"),
    class_counts(
        RACE,
        "atomicAdd(&counts[c], static_cast<unsigned long long>(block_counts[c]));",
        "counts[c] += block_counts[c];",
        "thread",
    ),
    class_counts(GLOBAL, "i < a.num_labels; i += step", "i <= a.num_labels; i += step", "address"),
    class_counts(TAIL, "c >= a.num_classes || ", ""),
    class_counts(TAIL, "c < 0 || ", ""),
    class_counts(PLACE, " || c == a.ignore_index", ""),
    class_counts(PLACE, "static_cast<int64_t>(gridDim.x) * blockDim.x", "int64_t(blockDim.x)"),
    class_counts(
        LAUNCH,
        "? a.num_classes * sizeof(unsigned)",
        "? (a.num_classes - 1) * sizeof(unsigned)",
        file=COUNTS_LAUNCH,
    ),
    class_counts(LAUNCH, "(a.num_labels + kCountThreads - 1)", "a.num_labels", file=COUNTS_LAUNCH),
    # ---- gather_rows
    gather_rows(READ, "  __syncthreads();\n", ""),
    gather_rows(BRANCH, "  __syncthreads();\n", "  if (exists) __syncthreads();\n"),
    gather_rows(
        BRANCH,
        "  __syncthreads();\n  if (channel + lane >= a.dim) return;\n",
        "  if (channel + lane >= a.dim) return;\n  __syncthreads();\n",
    ),
    gather_rows(SHARED, "= tile[lane][i];", "= tile[lane + 1][i];"),
    gather_rows(
        SHARED,
        "DGCL_SHARED(Word, tile, [kGatherTile][kGatherTile + 1])",
        "DGCL_SHARED(Word, tile, [kGatherTile - 1][kGatherTile + 1])",
    ),
    gather_rows(UNSET, "    if (exists) tile[d]", "    if (exists && d > 0) tile[d]"),
    gather_rows(GLOBAL, "  if (i >= a.num_pixels) return;\n", "", "address"),
    gather_rows(GLOBAL, " && pixel + i < a.num_pixels", "", "address"),
    # Not here: "p < 0 ||" left out. Such a pixel's offset is negative, which says the same.
    gather_rows(TAIL, "  if (channel + lane >= a.dim) return;\n", ""),
    gather_rows(TAIL, "p >= a.num_images", "p > a.num_images"),
    gather_rows(PLACE, "image * a.image_stride", "image * a.area"),
    gather_rows(PLACE, "(p - image * a.area) * a.pixel_stride", "(p - image * a.area)"),
    gather_rows(PLACE, "blockIdx.x % channel_tiles * kGatherTile", "0"),
    gather_rows(
        VECTOR,
        "  if (a.channel_stride != 1 || bytes % sizeof(uint4) != 0) return false;\n",
        "  if (a.channel_stride != 1) return false;\n",
        "address",
        GATHER_LAUNCH,
    ),
    gather_rows(
        VECTOR,
        "(a.dim | a.image_stride | a.pixel_stride)",
        "(a.image_stride | a.pixel_stride)",
        file=GATHER_LAUNCH,
    ),
    # ---- memory_push
    memory_push(GLOBAL, "  if (item >= a.num_classes * most) return;\n", "", "address"),
    memory_push(GLOBAL, "a.heads[c], a.capacity - 1) + i)", "a.heads[c], a.capacity) + i)"),
    memory_push(
        GLOBAL, "clamped_count(a.row_counts[c], a.num_rows);\n  const", "a.row_counts[c];\n  const"
    ),
    memory_push(GLOBAL, "  if (c >= a.num_classes) return;\n", "", "address"),
    memory_push(TAIL, "  if (i >= arriving) return;\n", ""),
    memory_push(TAIL, "at < row_bytes; at", "at <= row_bytes; at"),
    memory_push(PLACE, "copy(c, i, c * a.capacity + ", "copy(c, i, c * a.num_rows + "),
    memory_push(PLACE, " + i) % a.capacity);", " + i));"),
    memory_push(PLACE, "(arriving > a.capacity ? arriving - a.capacity : 0)", "0"),
    memory_push(PLACE, "a.capacity - 1) + arriving) % a.capacity;", "a.capacity - 1) + arriving);"),
    memory_push(PLACE, "+ c * group_stride + i", "+ i"),
    memory_push(
        MASK,
        "if constexpr (kNormalize) norm =",
        "if (kNormalize && static_cast<int>(threadIdx.x % kWarp) < push.dim) norm =",
    ),
    memory_push(
        VECTOR, "aligned(push.ring, push.dim * bytes)", "aligned(push.ring, 0)", file=PUSH_LAUNCH
    ),
    memory_push(
        VECTOR,
        "aligned(push.rows.data, row_stride | group_stride)",
        "aligned(push.rows.data, 0)",
        file=PUSH_LAUNCH,
    ),
    memory_push(
        MERGE,
        "step = kWarp / 2; step > 0; step /= 2) partial",
        "step = kWarp / 4; step > 0; step /= 2) partial",
        file="rows.cuh",
    ),
    memory_push(MERGE, "  largest = warp_reduce_max(largest);\n", "", file="rows.cuh"),
    memory_push(
        MASK,
        "  if (!__all_sync(kFullWarp, finite)) return",
        "  if (!finite) return",
        file="rows.cuh",
    ),
    memory_push(
        TAIL,
        "d = threadIdx.x % kWarp; d < dim; d += kWarp) sum",
        "d = threadIdx.x % kWarp; d <= dim; d += kWarp) sum",
        file="rows.cuh",
    ),
    # ---- silhouette_sums
    silhouette_sums(READ, "        __syncthreads();\n#pragma", "#pragma"),
    silhouette_sums(WRITE, "        }\n        __syncthreads();\n", "        }\n"),
    silhouette_sums(
        BRANCH,
        "        }\n        __syncthreads();\n",
        "        }\n        if (first + x < end) __syncthreads();\n",
    ),
    silhouette_sums(SHARED, "    to[d][r] =", "    to[d + 1][r] ="),
    silhouette_sums(
        SHARED,
        "DGCL_SHARED(double, right, [kPairDepth]",
        "DGCL_SHARED(double, right, [kPairDepth - 1]",
    ),
    silhouette_sums(UNSET, "    to[d][r] = exists ?", "    if (exists) to[d][r] = exists ?"),
    silhouette_sums(GLOBAL, "first + r < end &&", "first + r <= end &&", "address"),
    silhouette_sums(GLOBAL, "x == 0 && row < a.num_rows", "x == 0", "address"),
    silhouette_sums(
        GLOBAL,
        "return offset < 0 ? 0 : offset > a.num_features ? a.num_features : offset;",
        "return offset;",
        "address",
    ),
    silhouette_sums(TAIL, " && column + d < dim;", ";"),
    silhouette_sums(TAIL, "        if (first + x + j * kPairSide < end)\n", ""),
    silhouette_sums(PLACE, "a.sums[row * a.num_classes + c]", "a.sums[row * a.num_classes]"),
    silhouette_sums(
        PLACE, "clamped_offset(a, c); first < end", "clamped_offset(a, 0); first < end"
    ),
    silhouette_sums(MERGE, "step = kPairSide / 2", "step = kPairSide / 4"),
    silhouette_sums(
        MASK,
        "    for (int i = 0; i < kPairsPerSide; ++i) {\n#pragma unroll\n      for (int step",
        "    for (int i = 0; i < kPairsPerSide && x < 8; ++i) {\n#pragma unroll\n      for (int step",
    ),
    # the same values, written by two blocks
    silhouette_sums(RACE, "c < a.num_classes; c += gridDim.y", "c < a.num_classes; ++c", "thread"),
]
