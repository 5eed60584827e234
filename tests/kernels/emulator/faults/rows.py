"""Faults for the kernels that draw numbers, sort pixels, copy and add distances."""

from . import (
    BINDING,
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
    TAIL,
    TIE,
    TURN,
    UNSET,
    VECTOR,
    WRITE,
    planted,
)

bits = planted("random_bits", "random_bits_kernel.cu")
bits_binding = planted("random_bits", "random_bits_binding.cpp")
word = planted("random_bits", "../math/random_bits.h")
keys = planted("partition_keys", "partition_keys_kernel.cu")
keys_binding = planted("partition_keys", "partition_keys_binding.cpp")
slot = planted("partition_keys", "../math/partition_key.h")
gather = planted("gather_rows", "gather_rows_kernel.cu")
gather_launch = planted("gather_rows", "gather_rows_kernel.cu")
push = planted("memory_push", "memory_push_kernel.cu")
push_launch = planted("memory_push", "memory_push_kernel.cu")
rows = planted("memory_push", "rows.cuh")
unit = planted("memory_push", "../math/unit_row.h")
sums = planted("silhouette_sums", "silhouette_sums_kernel.cu")

push_binding = planted("memory_push", "memory_push_binding.cpp")

FAULTS = [
    # ---- bindings
    keys_binding(BINDING, "device.stream()", "nullptr"),
    keys_binding(
        BINDING,
        "const OnDeviceOf device(labels);",
        "struct { void* stream() const { return nullptr; } } device;",
    ),
    keys_binding(
        BINDING,
        'check_launch("partition_keys", launch_partition_keys(a, device.stream()));',
        "launch_partition_keys(a, device.stream());",
    ),
    keys_binding(UNSET, "torch::stable::new_zeros(", "torch::stable::new_empty("),
    *(
        keys_binding(PLACE, f"torch::stable::contiguous({argument})", argument)
        for argument in ("labels", "usable", "bits")
    ),
    keys(BINDING, "smem, stream, a);", "smem, nullptr, a);"),
    keys(BINDING, "static_cast<int>(cudaGetLastError())", "0"),
    bits_binding(BINDING, "device.stream()", "nullptr"),
    bits_binding(PLACE, "torch::stable::contiguous(rng_state)", "rng_state"),
    bits(BINDING, "0, stream, a);", "0, nullptr, a);"),
    bits(BINDING, "static_cast<int>(cudaGetLastError())", "0"),
    # ---- random_bits
    bits(GLOBAL, "  if (i >= a.count) return;\n", "", "address"),
    bits(LAUNCH, "  if (a.count == 0) return 0;\n", ""),
    bits(LAUNCH, "blocks_for(a.count, kRandomThreads)", "dim3(unsigned(a.count / kRandomThreads))"),
    bits(PLACE, "static_cast<int64_t>(blockIdx.x) * kRandomThreads + threadIdx.x", "threadIdx.x"),
    word(RANGE, "static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32)", "0"),
    word(RANGE, " ^ high_word(step)", ""),
    word(PLACE, " + low_word(stream) * kStreamOffset", ""),
    word(
        PLACE,
        "mix_word(mix_word(index ^ keys.first) + keys.second)",
        "mix_word(index ^ keys.first)",
    ),
    # ---- partition_keys
    keys(READ, "    __syncthreads();\n  }\n", "  }\n"),
    keys(READ, "  if (!shared) return;\n  __syncthreads();\n", "  if (!shared) return;\n"),
    keys(
        BRANCH,
        "  if (!shared) return;\n  __syncthreads();\n",
        "  if (!shared) return;\n  if (threadIdx.x < slots) __syncthreads();\n",
    ),
    keys(
        SHARED,
        "s < slots; s += blockDim.x) block_counts[s] = 0;",
        "s <= slots; s += blockDim.x) block_counts[s] = 0;",
    ),
    keys(
        UNSET,
        "(int64_t s = threadIdx.x; s < slots; s += blockDim.x) block_counts[s] = 0;",
        "(int64_t s = threadIdx.x + 1; s < slots; s += blockDim.x) block_counts[s] = 0;",
    ),
    keys(RACE, "atomicAdd(&block_counts[slot], 1u);", "block_counts[slot] += 1u;", "thread"),
    keys(RACE, "atomicAdd(&counts[slot], 1ull);", "counts[slot] += 1ull;", "thread"),
    keys(
        RACE,
        "atomicAdd(&counts[s], static_cast<unsigned long long>(block_counts[s]));",
        "counts[s] += block_counts[s];",
        "thread",
    ),
    keys(GLOBAL, "i < a.num_pixels; i += step", "i <= a.num_pixels; i += step", "address"),
    keys(PLACE, "static_cast<int64_t>(gridDim.x) * blockDim.x", "int64_t(blockDim.x)"),
    keys(TURN, "i < a.num_pixels; i += step)", "i < a.num_pixels && i < step; i += step)"),
    keys(LAUNCH, "? slots * sizeof(unsigned)", "? (slots - 1) * sizeof(unsigned)"),
    keys(LAUNCH, "(a.num_pixels + kPartitionThreads - 1)", "a.num_pixels"),
    slot(TAIL, " || label >= num_classes", ""),
    slot(TAIL, "label < 0 || ", ""),
    slot(PLACE, "  if (label == ignore_index) return num_classes;\n", ""),
    slot(PLACE, "  if (!usable) return num_classes + 1;\n", ""),
    slot(PLACE, "slot < num_classes ? slot : num_classes;", "slot;"),
    slot(RANGE, "(bits & 0xffffffff)", "bits"),
    slot(OFFSET, "(segment << 32)", "(segment << 31)"),
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
    gather(TAIL, "p >= a.num_images", "p > a.num_images"),
    gather(PLACE, "image * a.image_stride", "image * a.area"),
    gather(PLACE, "(p - image * a.area) * a.pixel_stride", "(p - image * a.area)"),
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
    gather_launch(
        TAIL,
        "(a.dim | a.image_stride | a.pixel_stride)",
        "(a.image_stride | a.pixel_stride)",
    ),
    gather(
        OFFSET,
        "return image * a.image_stride +",
        "return static_cast<int>(image * a.image_stride) +",
    ),
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
