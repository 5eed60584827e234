"""Faults planted in copies of the CPU kernels and of their checks."""

from kernels.sanitizers.faults import BEYOND, fault

KERNEL, CHECKS = "cpu/memory_push_kernel.cpp", "ops/memory_push.cpp"
FAULTS = [
    fault(
        "the pixel after the last",
        "gather_rows",
        "cpu/gather_rows_kernel.cpp",
        "pixel[i] >= given.pixels)",
        "pixel[i] > given.pixels)",
        f"{BEYOND}|Assertion '__n < this->size\\(\\)' failed|PROBLEM gather_rows",
    ),
    fault(
        "heads of any size",
        "memory_push",
        KERNEL,
        'read_counts(op, "heads", heads, capacity - 1)',
        'read_counts(op, "heads", heads, INT64_MAX)',
        "runtime error: signed integer overflow|PROBLEM memory_push.*heads must lie in",
    ),
    fault(
        "a count is written before all is checked",
        "memory_push",
        KERNEL,
        'const std::vector<int64_t> head = read_counts(op, "heads"',
        "if (classes > 0) ++*static_cast<int64_t*>(counts.mutable_data_ptr());\n"
        '  const std::vector<int64_t> head = read_counts(op, "heads"',
        "PROBLEM memory_push.*an error, and changed: counts",
    ),
    fault(
        "rows of a ring are pushed into the ring",
        "memory_push",
        CHECKS,
        "return a_begin < b_end && b_begin < a_end;",
        "return a_begin < b_end && b_begin < a_end && false;",
        "PROBLEM memory_push.*(Error: error|other values|changed)",
    ),
]
