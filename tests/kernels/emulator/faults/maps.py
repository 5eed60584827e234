"""Faults for finite_rows."""

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
layout = planted("finite_rows", "../math/pixel_layout.h")
sides = planted("finite_rows", "../common/maps.h")

FAULTS = [
    # ---- finite_rows
    finite_binding(BINDING, "device.stream()", "nullptr"),
    finite_binding(
        BINDING,
        'check_launch("finite_rows", launch_finite_rows(a, device.stream()));',
        "launch_finite_rows(a, device.stream());",
    ),
    finite_binding(PLACE, "return 0x7f80;", "return 0x7c00;"),
    finite_binding(PLACE, "pixel_layout(t, has_channels ? 1 : -1)", "pixel_layout(t, 1)"),
    finite_binding(PLACE, "m.channel_stride = has_channels ? t.stride(1) : 1;", ""),
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
    finite(PLACE, "__shfl_sync(kFullWarp, place, i)", "place"),
    finite(PLACE, "found && lane == i", "found && lane == 0"),
    finite(PLACE, "  found |= warp_finds_any(a.other_maps, first, num_pixels);\n", ""),
    finite(PLACE, "  found |= warp_finds_any(a.confidence, first, num_pixels);\n", ""),
    finite(PLACE, "  if (m.element_bytes == 8)", "  if (m.element_bytes == 16)"),
    finite(TIE, "== static_cast<Word>(exponent);", ">= static_cast<Word>(exponent) / 2;"),
    finite(TIE, "parts[i] >> 16)", "parts[i])"),
    finite(TIE, "else if (i % 2)", "else if (i % 2 == 0)"),
    finite(TIE, "int i = 0; i < 4; ++i) {\n    if", "int i = 0; i < 3; ++i) {\n    if"),
    finite(VECTOR, "reinterpret_cast<uintptr_t>(m.data) % sizeof(uint4) == 0 &&", "", "address"),
    finite(VECTOR, "    if (m.layout.strides[i] % per_vector != 0) return false;\n", "    {}\n"),
    finite(LAUNCH, "blocks_for(a.num_pixels, kWarp)", "blocks_for(a.num_pixels - 1, kWarp)"),
    # ---- the layout of the pixels
    layout(
        PLACE, "(p - outer * layout.sizes[i]) * layout.strides[i]", "(p - outer * layout.sizes[i])"
    ),
    layout(PLACE, "place += (p -", "place = (p -"),
    layout(PLACE, "    p = outer;\n", ""),
    layout(PLACE, "return place + p *", "return p *"),
    layout(OFFSET, "p * layout.strides[i];", "static_cast<int>(p * layout.strides[i]);"),
    sides(PLACE, " && t.stride(dim) == layout.sizes[last] * layout.strides[last]", ""),
    # Dropping "t.size(dim) == 1" is no fault: a side of one pixel adds nothing.
]
