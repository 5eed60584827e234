"""Faults for the kernels that read pixels sorted by class."""

from . import (
    BINDING,
    BRANCH,
    GLOBAL,
    LAUNCH,
    MERGE,
    OFFSET,
    PLACE,
    READ,
    SHARED,
    TAIL,
    TIE,
    UNSET,
    planted,
)

leading = planted("leading_rows", "leading_rows_kernel.cu")
leading_binding = planted("leading_rows", "leading_rows_binding.cpp")
drawing = planted("draw_negatives", "draw_negatives_kernel.cu")
drawing_binding = planted("draw_negatives", "draw_negatives_binding.cpp")
negatives = planted("draw_negatives", "../math/negatives.h")
table = planted("class_table", "class_table_kernel.cu")
table_binding = planted("class_table", "class_table_binding.cpp")

FAULTS = [
    # ---- leading_rows
    leading_binding(BINDING, "device.stream()", "nullptr"),
    leading_binding(
        BINDING,
        'check_launch("leading_rows", launch_leading_rows(a, device.stream()));',
        "launch_leading_rows(a, device.stream());",
    ),
    leading(READ, "  __syncthreads();\n  offset = start = 0;", "  offset = start = 0;"),
    leading(
        READ,
        "    __syncthreads();\n    offsets = sums;",
        "    offsets = sums;",
    ),
    leading(
        BRANCH,
        "  __syncthreads();\n  offset = start = 0;",
        "  if (first < end) __syncthreads();\n  offset = start = 0;",
    ),
    leading(
        BRANCH,
        "    __syncthreads();\n    offsets = sums;",
        "    if (threadIdx.x <= a.num_classes) __syncthreads();\n    offsets = sums;",
    ),
    leading(SHARED, "wanted, [kLeadingThreads]", "wanted, [kLeadingThreads - 1]"),
    leading(UNSET, "  counted[thread] = start;", "  if (thread > 0) counted[thread] = start;"),
    leading(
        UNSET,
        "    starts[a.num_classes] = clamped(start, a.num_pixels);\n",
        "",
    ),
    leading(GLOBAL, "  if (i >= a.size) return;\n", "", "address"),
    leading(GLOBAL, "return clamped(a.counts[c], a.num_pixels);", "return a.counts[c];"),
    leading(
        GLOBAL,
        "a.pixels[clamped(starts[c] + (i - offsets[c]), a.num_pixels - 1)]",
        "a.pixels[starts[c] + (i - offsets[c])]",
        "address",
    ),
    leading(PLACE, "clamped(a.limits[c], a.size)", "a.limits[c]"),
    leading(PLACE, "return count < limit ? count : limit;", "return limit;"),
    leading(PLACE, "offsets[c + 1] <= i", "offsets[c + 1] < i"),
    leading(PLACE, "+ (i - offsets[c])", "+ i"),
    leading(PLACE, "offsets[c] = clamped(offset, a.size);", "offsets[c] = offset;"),
    leading(PLACE, "    if (blockIdx.x == 0)\n", "    if (blockIdx.x == 1)\n"),
    leading(
        TAIL, "c <= a.num_classes; c += kLeadingThreads", "c < a.num_classes; c += kLeadingThreads"
    ),
    leading(MERGE, "int64_t t = 0; t < thread &&", "int64_t t = 1; t < thread &&"),
    leading(LAUNCH, "(a.num_classes + 1) * sizeof(int64_t)", "(a.num_classes) * sizeof(int64_t)"),
    leading(LAUNCH, "blocks_for(a.size > 0 ? a.size : 1,", "blocks_for(a.size,"),
    # ---- draw_negatives
    drawing_binding(BINDING, "device.stream()", "nullptr"),
    drawing_binding(
        BINDING,
        'check_launch("draw_negatives", launch_draw_negatives(a, device.stream()));',
        "launch_draw_negatives(a, device.stream());",
    ),
    drawing(READ, "  __syncthreads();\n", ""),
    drawing(
        BRANCH, "  __syncthreads();\n", "  if (threadIdx.x < a.num_classes) __syncthreads();\n"
    ),
    drawing(SHARED, "before, [kDrawThreads]", "before, [kDrawThreads - 1]"),
    drawing(
        UNSET, "  all[threadIdx.x] = total;", "  if (threadIdx.x > 0) all[threadIdx.x] = total;"
    ),
    drawing(
        GLOBAL,
        "const int64_t count = clamped(a.counts[other], a.num_pixels);",
        "const int64_t count = a.counts[other];",
    ),
    drawing(
        GLOBAL,
        "a.pixels[clamped(position, a.num_pixels - 1)]",
        "a.pixels[position]",
        "address",
    ),
    drawing(GLOBAL, "i < a.limit; i +=", "i <= a.limit; i +=", "address"),
    drawing(
        GLOBAL, "other < a.num_classes; other +=", "other <= a.num_classes; other +=", "address"
    ),
    drawing(
        TAIL,
        "other < a.num_classes; other +=",
        "other < kDrawThreads && other < a.num_classes; other +=",
    ),
    drawing(TAIL, "i < a.limit; i +=", "i < kDrawThreads && i < a.limit; i +="),
    drawing(MERGE, "int t = 0; t < kDrawThreads", "int t = 1; t < kDrawThreads"),
    drawing(MERGE, "t < kDrawThreads && t", "t < kDrawThreads - 1 && t"),
    drawing(PLACE, "if (other < c)", "if (other <= c)"),
    drawing(PLACE, "a.bits[c * a.limit + i]", "a.bits[i]"),
    drawing(PLACE, "clamped(total, a.num_pixels) - own", "clamped(total, a.num_pixels)"),
    drawing(PLACE, "segment.others < a.limit ? segment.others : a.limit", "a.limit"),
    drawing(LAUNCH, "blocks_for(a.num_classes, 1)", "blocks_for(a.num_classes - 1, 1)"),
    negatives(TIE, "segment.others > limit", "segment.others >= limit"),
    negatives(TIE, "number < segment.start", "number <= segment.start"),
    negatives(PLACE, "number + segment.count", "number"),
    negatives(
        OFFSET,
        "static_cast<uint64_t>(word) * static_cast<uint64_t>(size)",
        "static_cast<uint64_t>(word * static_cast<uint32_t>(size))",
    ),
    # ---- class_table
    table_binding(BINDING, "device.stream()", "nullptr"),
    table_binding(
        BINDING,
        'check_launch("class_table", launch_class_table(a, device.stream()));',
        "launch_class_table(a, device.stream());",
    ),
    table(GLOBAL, "  if (slot >= a.num_classes * a.width) return;\n", "", "address"),
    table(
        GLOBAL, "int64_t entry = clamped(at, a.num_pixels - 1);", "int64_t entry = at;", "address"
    ),
    table(
        GLOBAL,
        "entry = clamped(a.order[entry], a.num_pixels - 1);",
        "entry = a.order[entry];",
        "address",
    ),
    table(PLACE, "clamped(a.offsets[c], a.num_pixels) + i", "a.offsets[c] + i"),
    table(PLACE, "clamped(a.offsets[c + 1], a.num_pixels) - 1", "a.offsets[c + 1] - 1"),
    table(PLACE, "a.offsets[c + 1], a.num_pixels) - 1 - i", "a.offsets[c + 1], a.num_pixels) - i"),
    table(PLACE, "i = slot - c * a.width;", "i = slot;"),
    table(PLACE, "a.pixels[entry]", "a.pixels[clamped(at, a.num_pixels - 1)]"),
    table(LAUNCH, "blocks_for(slots, kTableThreads)", "blocks_for(slots - 1, kTableThreads)"),
]
