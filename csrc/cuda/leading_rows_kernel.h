#pragma once
#include <cstdint>

namespace dgcl {

struct LeadingRowsArguments {
  const int64_t *pixels, *counts, *limits;  // [num_pixels], [num_classes], [num_classes]
  int64_t num_pixels, num_classes, size;    // size <= num_pixels
  int64_t *rows, *classes, *offsets;        // [size], [size], [num_classes + 1]
  int64_t* starts;                          // [num_classes + 1], scratch if blocks_sum(num_classes) is false
};

// Whether each block adds up the counts by itself. Otherwise a kernel of one block does it first.
bool blocks_sum(int64_t num_classes);

int launch_leading_rows(const LeadingRowsArguments& arguments, void* stream);

}  // namespace dgcl
