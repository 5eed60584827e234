#include "checks.h"

namespace dgcl {

void check_leading_rows(const Tensor& pixels, const Tensor& pixel_counts, const Tensor& limits, int64_t size) {
  const char* op = "leading_rows";
  check_int64_vector(op, "pixels", pixels, -1, "[R]");
  check_int64_vector(op, "pixel_counts", pixel_counts, -1, "[C]");
  check_int64_vector(op, "limits", limits, pixel_counts.numel(), "[C]");
  check_same_device(op, "pixel_counts", pixel_counts, "pixels", pixels);
  check_same_device(op, "limits", limits, "pixels", pixels);
  if (size < 0 || size > pixels.numel())
    fail(op, "size must lie in [0, ", pixels.numel(), "], the number of pixels, got ", size);
}

}  // namespace dgcl
