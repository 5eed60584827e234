#include <cstdint>

#include "checks.h"

namespace dgcl {
namespace {

// Whether the product of two sizes is 2^63 or more.
bool overflows(int64_t a, int64_t b) { return b != 0 && a > INT64_MAX / b; }

}  // namespace

void check_gather_rows(const Tensor& maps, const Tensor& pixels) {
  const char* op = "gather_rows";
  check_float(op, "maps", maps);
  check_shape(op, "maps", maps, {-1, -1, -1, -1}, "[B, D, H, W]");
  // Maps without channels take no memory, so any number of pixels is possible.
  if (overflows(maps.size(2), maps.size(3)) || overflows(maps.size(2) * maps.size(3), maps.size(0)))
    fail(op, "maps must have fewer than 2^63 pixels, got ", shape_of(maps));
  check_given(op, "indices", pixels);
  if (pixels.scalar_type() != ScalarType::Long)
    fail(op, "indices must be int64, got ", dtype_name(pixels.scalar_type()));
  check_same_device(op, "indices", pixels, "maps", maps);
}

}  // namespace dgcl
