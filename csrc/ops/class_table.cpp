#include "checks.h"

namespace dgcl {

void check_class_table(const Tensor& pixels, const Tensor& offsets, const std::optional<Tensor>& order, int64_t width) {
  const char* op = "class_table";
  check_int64_vector(op, "pixels", pixels, -1, "[N]");
  check_int64_vector(op, "offsets", offsets, -1, "[C + 1]");
  if (offsets.numel() < 1) fail(op, "offsets must have shape [C + 1], got ", shape_of(offsets));
  check_same_device(op, "offsets", offsets, "pixels", pixels);
  if (order) {
    check_int64_vector(op, "order", *order, pixels.numel(), "[N]");
    check_same_device(op, "order", *order, "pixels", pixels);
  }
  if (width < 0 || width > pixels.numel())
    fail(op, "width must lie in [0, ", pixels.numel(), "], the number of pixels, got ", width);
}

}  // namespace dgcl
