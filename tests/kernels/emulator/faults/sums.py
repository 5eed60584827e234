"""Faults for the kernel that sums table rows."""

from . import BINDING, GLOBAL, LAUNCH, MERGE, OFFSET, PLACE, TAIL, planted

sums = planted("sum_rows", "sum_rows_kernel.cu")
binding = planted("sum_rows", "sum_rows_binding.cpp")

FAULTS = [
    binding(BINDING, "device.stream()", "nullptr"),
    binding(
        BINDING,
        'check_launch("sum_rows", launch_sum_rows(a, device.stream()));',
        "launch_sum_rows(a, device.stream());",
    ),
    binding(PLACE, "a.width = indices ? indices->size(1) : a.num_rows;", "a.width = a.num_rows;"),
    binding(PLACE, "in_float64 || rows.scalar_type() == ScalarType::Double", "in_float64"),
    sums(GLOBAL, "  if (i >= a.num_classes * a.dim) return;\n", "", "address"),
    sums(GLOBAL, "clamped(a.row_counts[c], a.width)", "a.row_counts[c]", "address"),
    sums(
        GLOBAL,
        "clamped(a.indices[c * a.width + j], a.num_rows - 1)",
        "a.indices[c * a.width + j]",
        "address",
    ),
    sums(
        GLOBAL,
        "a.num_rows > 0 ? clamped(a.row_counts[c], a.width) : 0",
        "clamped(a.row_counts[c], a.width)",
        "address",
    ),
    sums(PLACE, "c * a.rows.group_stride", "0"),
    sums(PLACE, "a.indices[c * a.width + j]", "a.indices[j]"),
    sums(PLACE, "column[row * a.rows.row_stride]", "column[row * a.dim]"),
    sums(PLACE, "(i - c * a.dim)", "0"),
    sums(
        PLACE, "launch_sums<Stored, double>(a, stream);", "launch_sums<Stored, float>(a, stream);"
    ),
    sums(TAIL, "int64_t j = 0; j < count; ++j", "int64_t j = 0; j + 1 < count; ++j"),
    sums(MERGE, "int64_t j = 0; j < count; ++j", "int64_t j = count - 1; j >= 0; --j"),
    sums(MERGE, "    sum += static_cast<T>(", "    sum += static_cast<float>("),
    sums(OFFSET, "c * a.rows.group_stride", "static_cast<int>(c * a.rows.group_stride)"),
    sums(
        OFFSET,
        "column[row * a.rows.row_stride]",
        "column[static_cast<int>(row * a.rows.row_stride)]",
    ),
    sums(LAUNCH, "blocks_for(a.num_classes * a.dim,", "blocks_for(a.num_classes * a.dim - 1,"),
]
