#include "gather_rows.h"

#include "../common/registration.h"

namespace dgcl {

void check_gather_rows(const Tensor& maps, const Tensor& pixels) {
  const char* op = "gather_rows";
  check_float(op, "maps", maps);
  check_shape(op, "maps", maps, {-1, -1, -1, -1}, "[B, D, H, W]");
  int64_t pixel_count;  // of maps without channels it may be anything
  if (__builtin_mul_overflow(maps.size(2), maps.size(3), &pixel_count) ||
      __builtin_mul_overflow(pixel_count, maps.size(0), &pixel_count))
    fail(op, "maps must have fewer than 2^63 pixels, got ", shape_of(maps));
  check_given(op, "pixels", pixels);
  if (pixels.scalar_type() != ScalarType::Long)
    fail(op, "pixels must be int64, got ", dtype_name(pixels.scalar_type()));
  check_same_device(op, "pixels", pixels, maps);
}

}  // namespace dgcl

STABLE_TORCH_LIBRARY_FRAGMENT(DGCL_NAMESPACE, m) { m.def("gather_rows(Tensor maps, Tensor pixels) -> Tensor"); }
