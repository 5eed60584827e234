#include "checks.h"

namespace dgcl {

void check_draw_negatives(const Tensor& pixels, const Tensor& pixel_counts, const Tensor& bits) {
  const char* op = "draw_negatives";
  check_int64_vector(op, "pixels", pixels, -1, "[R]");
  check_int64_vector(op, "pixel_counts", pixel_counts, -1, "[C]");
  check_int64(op, "bits", bits);
  check_shape(op, "bits", bits, {pixel_counts.numel(), -1}, "[C, N]");
  check_same_device(op, "pixel_counts", pixel_counts, "pixels", pixels);
  check_same_device(op, "bits", bits, "pixels", pixels);
  if (pixels.numel() < 1) fail(op, "pixels must have at least one entry, got ", shape_of(pixels));
  if (pixels.numel() >= int64_t(1) << 31) fail(op, "pixels must have fewer than 2^31 entries, got ", shape_of(pixels));
}

}  // namespace dgcl
