"""Faults for the kernels that draw random words and sort pixels by class."""

from . import (
    BINDING,
    BRANCH,
    GLOBAL,
    LAUNCH,
    OFFSET,
    PLACE,
    RACE,
    RANGE,
    READ,
    SHARED,
    TAIL,
    TURN,
    UNSET,
    planted,
)

bits = planted("random_bits", "random_bits_kernel.cu")
bits_binding = planted("random_bits", "random_bits_binding.cpp")
word = planted("random_bits", "../math/random_bits.h")
keys = planted("partition_keys", "partition_keys_kernel.cu")
keys_binding = planted("partition_keys", "partition_keys_binding.cpp")
slot = planted("partition_keys", "../math/partition_key.h")

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
]
