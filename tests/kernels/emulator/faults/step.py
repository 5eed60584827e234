"""Faults for the kernels that read a batch: finite rows, and the first rows of each class."""

from . import (
    BINDING,
    BRANCH,
    GLOBAL,
    LAUNCH,
    MASK,
    MERGE,
    OFFSET,
    PLACE,
    READ,
    SHARED,
    TAIL,
    TIE,
    UNSET,
    VECTOR,
    planted,
)

finite = planted("finite_rows", "finite_rows_kernel.cu")
finite_binding = planted("finite_rows", "finite_rows_binding.cpp")
leading = planted("leading_rows", "leading_rows_kernel.cu")
leading_binding = planted("leading_rows", "leading_rows_binding.cpp")

FAULTS = [
    # ---- finite_rows
    finite_binding(BINDING, "device.stream()", "nullptr"),
    finite_binding(
        BINDING,
        'check_launch("finite_rows", launch_finite_rows(a, device.stream()));',
        "launch_finite_rows(a, device.stream());",
    ),
    finite_binding(PLACE, "return 0x7f80;", "return 0x7c00;"),
    finite_binding(PLACE, "m.row_stride = flat ? 0 : t.stride(first);", "m.row_stride = 0;"),
    finite_binding(PLACE, "m.image_stride = flat ? 0 : t.stride(0);", "m.image_stride = 0;"),
    finite(READ, "  __syncthreads();\n", ""),
    finite(
        BRANCH,
        "  __syncthreads();\n  if (warp > 0 || first + lane >= num_pixels) return;\n",
        "  if (warp > 0 || first + lane >= num_pixels) return;\n  __syncthreads();\n",
    ),
    finite(SHARED, "found_by, [kFiniteWarps]", "found_by, [kFiniteWarps - 1]"),
    finite(UNSET, "if (lane == 0) found_by", "if (lane == 0 && warp > 0) found_by"),
    finite(MASK, "    found = __any_sync", "    if (lane < m.dim) found = __any_sync"),
    finite(MERGE, "found = __any_sync(kFullWarp, found);", ""),
    finite(MERGE, "int w = 0; w < kFiniteWarps; ++w", "int w = 1; w < kFiniteWarps; ++w"),
    finite(GLOBAL, "    if (first + lane >= num_pixels) return false;\n", "", "address"),
    finite(GLOBAL, " && first + i < num_pixels", "", "address"),
    finite(GLOBAL, "warp > 0 || first + lane >= num_pixels", "warp > 0", "address"),
    finite(GLOBAL, "d = warp; d < m.dim;", "d = warp; d <= m.dim;", "address"),
    finite(GLOBAL, "d = lane; d < m.dim;", "d = lane; d <= m.dim;", "address"),
    finite(TAIL, "d < m.dim; d += kWarp * kPerVector", "d + 32 < m.dim; d += kWarp * kPerVector"),
    finite(TAIL, "d += kFiniteWarps) mine", "d += m.dim) mine"),
    finite(PLACE, "image * m.image_stride +", "0 +"),
    finite(PLACE, "(rest - y * a.width) * m.pixel_stride", "(rest - y * a.width)"),
    finite(PLACE, "found && lane == i", "found && lane == 0"),
    finite(PLACE, "  found |= warp_finds_any(a, a.other_maps, first, num_pixels);\n", ""),
    finite(PLACE, "  found |= warp_finds_any(a, a.confidence, first, num_pixels);\n", ""),
    finite(PLACE, "  if (m.element_bytes == 8)", "  if (m.element_bytes == 16)"),
    finite(TIE, "== static_cast<Word>(exponent);", ">= static_cast<Word>(exponent) / 2;"),
    finite(TIE, "parts[i] >> 16)", "parts[i])"),
    finite(TIE, "else if (i % 2)", "else if (i % 2 == 0)"),
    finite(TIE, "int i = 0; i < 4; ++i) {\n    if", "int i = 0; i < 3; ++i) {\n    if"),
    finite(VECTOR, "reinterpret_cast<uintptr_t>(m.data) % sizeof(uint4) == 0 &&", "", "address"),
    finite(VECTOR, "m.row_stride | m.pixel_stride)", "m.row_stride)"),
    finite(
        OFFSET,
        "return image * m.image_stride +",
        "return static_cast<int>(image * m.image_stride) +",
    ),
    finite(LAUNCH, "blocks_for(num_pixels, kWarp)", "blocks_for(num_pixels - 1, kWarp)"),
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
]
