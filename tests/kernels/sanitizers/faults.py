"""Faults planted in copies of the CPU kernels. Each is for one mode, which must report it."""

from kernels.harness.faults import Fault

BEYOND = "heap-buffer-overflow|use-after-poison|unknown-crash"
RACE = "ThreadSanitizer: data race"


def fault(
    kind: str, op: str, file: str, old: str, new: str, report: str, mode: str = "address"
) -> Fault:
    return Fault(kind, op, file, old, new, mode, report)


QUEUE = "    run_queue((count + chunk - 1) / chunk, [&](auto& next) {\n"
FAULTS = [
    # ---- AddressSanitizer: writes
    fault(
        "scratch of the tile product: one logit too many",
        "density_contrast",
        "cpu/density_contrast_kernel.cpp",
        "for (int64_t c = 0; c < prims_.tile_columns; ++c)\n          logits_",
        "for (int64_t c = 0; c <= prims_.tile_columns; ++c)\n          logits_",
        BEYOND,
    ),
    fault(
        "scratch of the gradients: one element too many is cleared",
        "density_contrast_backward",
        "cpu/density_contrast_kernel.cpp",
        "std::fill_n(key_gradient.get(), p.dim, T(0));",
        "std::fill_n(key_gradient.get(), p.dim + 1, T(0));",
        BEYOND,
    ),
    fault(
        "the ring's slot after the last",
        "memory_push",
        "cpu/memory_push_kernel.cpp",
        "(head[c] + i) % capacity;\n        if",
        "(head[c] + i) % (capacity + 1);\n        if",
        BEYOND,
    ),
    # ---- AddressSanitizer: reads
    fault(
        "the bank's row after the last",
        "knn_topk_backward",
        "cpu/knn_topk_kernel.cpp",
        "row[i] >= input.problem.bank_rows)",
        "row[i] > input.problem.bank_rows)",
        BEYOND,
    ),
    fault(
        "the pixel after the last",
        "gather_rows",
        "cpu/gather_rows_kernel.cpp",
        "pixel[i] >= given.pixels)",
        "pixel[i] > given.pixels)",
        BEYOND + "|Assertion '__n < this->size\\(\\)' failed",
    ),
    fault(
        "the rows of the last pixel without an end",
        "gather_rows_backward",
        "cpu/gather_rows_kernel.cpp",
        "begin(static_cast<size_t>(num_pixels + 1), 0)",
        "begin(static_cast<size_t>(num_pixels), 0)",
        BEYOND + "|Assertion '__n < this->size\\(\\)' failed",
    ),
    fault(
        "a plane is cleared one pixel too far",
        "gather_rows_backward",
        "cpu/gather_rows_kernel.cpp",
        "std::fill_n(plane, end - first, Stored(0));",
        "std::fill_n(plane, end - first + 1, Stored(0));",
        BEYOND,
    ),
    fault(
        "candidates without room for a whole tile more",
        "knn_topk",
        "cpu/knn/block.h",
        "return candidates + kMaxTileColumns + kMaxWidth;",
        "return candidates;",
        BEYOND,
    ),
    fault(
        "a whole register where fewer columns are left",
        "knn_topk",
        "math/canonical.h",
        "if (left >= V::width) {",
        "if (left >= 1) {",
        BEYOND,
    ),
    fault(
        "a count of the standard library's vector",
        "knn_topk_backward",
        "cpu/knn_topk_kernel.cpp",
        "begin(static_cast<size_t>(total + 1), 0), pairs;",
        "begin(static_cast<size_t>(total), 0), pairs;",
        BEYOND + "|Assertion '__n < this->size\\(\\)' failed",
    ),
    fault(
        "the channel after the last",
        "finite_rows",
        "cpu/finite_rows_kernel.cpp",
        "for (; d + kChannels <= maps.dim; d += kChannels)",
        "for (; d < maps.dim; d += kChannels)",
        BEYOND,
    ),
    fault(
        "the marks of a whole tile in less memory",
        "finite_rows",
        "cpu/finite_rows_kernel.cpp",
        "std::array<Word, kTilePixels> found;",
        "std::array<Word, kTilePixels / 2> found;",
        BEYOND + "|stack-buffer-overflow",
    ),
    fault(
        "one class more than there are",
        "leading_rows",
        "cpu/leading_rows_kernel.cpp",
        "for (int64_t c = 0; c < classes; ++c) {",
        "for (int64_t c = 0; c <= classes; ++c) {",
        BEYOND + "|Assertion '__n < this->size\\(\\)' failed|stack",
    ),
    fault(
        "one draw more than there are words",
        "draw_negatives",
        "cpu/draw_negatives_kernel.cpp",
        "i < (c + 1) * limit; ++i)",
        "i <= (c + 1) * limit; ++i)",
        BEYOND,
    ),
    fault(
        "an entry beyond the last pixel",
        "class_table",
        "cpu/class_table_kernel.cpp",
        "std::min(offset[at] + i, total - 1)",
        "offset[at] + i",
        BEYOND,
    ),
    fault(
        "indices beyond the counts",
        "sum_rows",
        "cpu/sum_rows_kernel.cpp",
        "j < table.counts[static_cast<size_t>(c)]; ++j) {\n    const char*",
        "j < table.width; ++j) {\n    const char*",
        BEYOND + "|SEGV",
    ),
    fault(
        "the word after the last",
        "random_bits",
        "cpu/random_bits_kernel.cpp",
        "i < end; ++i)",
        "i <= end; ++i)",
        BEYOND,
    ),
    fault(
        "a histogram without the skipped pixels",
        "partition_keys",
        "cpu/partition_keys_kernel.cpp",
        "stride = slots + kCacheLine;",
        "stride = slots - kSkippedSlots;",
        BEYOND,
    ),
    # ---- UndefinedBehaviorSanitizer
    fault(
        "signed overflow in a check",
        "partition_keys",
        "math/partition_key.h",
        "return label < 0 || label >= num_classes ?",
        "return label - num_classes >= 0 || label < 0 ?",
        "runtime error: signed integer overflow",
    ),
    fault(
        "vectors loaded from rows that are not aligned for them",
        "density_contrast",
        "cpu/panel.h",
        "__attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T))));",
        "__attribute__((vector_size(4 * sizeof(T))));",
        "runtime error: (load|store|reference binding).* misaligned",
    ),
    # ---- ThreadSanitizer
    fault(
        "one scratch for all threads",
        "knn_topk_backward",
        "cpu/knn_topk_kernel.cpp",
        f"{QUEUE}      Scratch scratch(p_.dim);\n",
        f"    Scratch scratch(p_.dim);\n{QUEUE}",
        RACE,
        "thread",
    ),
    fault(
        "all queries' neighbours in one place",
        "knn_topk",
        "cpu/knn_topk_kernel.cpp",
        "value[query * k + r] = ",
        "value[r] = ",
        RACE,
        "thread",
    ),
    fault(
        "the blocks of a group share their sum",
        "density_contrast",
        "cpu/density_contrast_kernel.cpp",
        "block_sums[static_cast<size_t>(item)] = sum;",
        "block_sums[static_cast<size_t>(g * blocks)] += sum;",
        RACE,
        "thread",
    ),
    fault(
        "a meeting of blocks does not see what the one before has written",
        "silhouette_sums",
        "cpu/silhouette_sums_kernel.cpp",
        "std::memory_order_acquire",
        "std::memory_order_relaxed",
        RACE,
        "thread",
    ),
    fault(
        "one list of chosen pixels for all threads",
        "gather_rows_backward",
        "cpu/gather_rows_kernel.cpp",
        "    std::vector<ChosenPixel<Stored>> chosen;\n",
        "    static std::vector<ChosenPixel<Stored>> chosen;\n",
        RACE,
        "thread",
    ),
    fault(
        "one histogram for all threads",
        "partition_keys",
        "cpu/partition_keys_kernel.cpp",
        "part == 0 ? total :",
        "part >= 0 ? total :",
        RACE,
        "thread",
    ),
    fault(
        "a queue without atomic numbers",
        "gather_rows",
        "common/parallel.h",
        "  std::atomic<int64_t> cursor{0};\n  auto next = [&]() -> int64_t {\n"
        "    const int64_t item = cursor.fetch_add(1, std::memory_order_relaxed);\n",
        "  int64_t cursor = 0;\n  auto next = [&]() -> int64_t {\n"
        "    const int64_t item = cursor++;\n",
        RACE,
        "thread",
    ),
    # The annotations of the pool are needed: without them, work seems to race with its caller.
    fault(
        "the pool does not declare its order",
        "memory_push",
        "common/parallel.h",
        "#if defined(__SANITIZE_THREAD__)\ninline void",
        "#if 0\ninline void",
        RACE,
        "thread",
    ),
]
