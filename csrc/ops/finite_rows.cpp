#include <algorithm>
#include <cstdint>
#include <vector>

#include "checks.h"

namespace dgcl {
namespace {

// The shape without the channels.
std::vector<int64_t> pixels_of(const Tensor& maps) {
  std::vector<int64_t> shape(maps.sizes().begin(), maps.sizes().end());
  shape.erase(shape.begin() + 1);
  return shape;
}

bool overflows(int64_t a, int64_t b) { return b != 0 && a > INT64_MAX / b; }

}  // namespace

void check_finite_rows(const Tensor& maps, const std::optional<Tensor>& other_maps,
                       const std::optional<Tensor>& confidence) {
  const char* op = "finite_rows";
  check_float(op, "maps", maps);
  if (maps.dim() != 2 && maps.dim() != 4) fail(op, "maps must have shape [B, D, H, W] or [M, D], got ", shape_of(maps));
  const std::vector<int64_t> pixels = pixels_of(maps);
  int64_t count = 1;
  for (int64_t size : pixels) {
    if (overflows(count, size)) fail(op, "maps must have fewer than 2^63 pixels, got ", shape_of(maps));
    count *= size;
  }
  if (other_maps) {
    check_float(op, "other_maps", *other_maps);
    if (other_maps->dim() != maps.dim() || pixels_of(*other_maps) != pixels)
      fail(op, "other_maps must have the shape of maps, ", shape_of(maps), ", except for the channels, got ",
           shape_of(*other_maps));
    check_same_device(op, "other_maps", *other_maps, "maps", maps);
  }
  if (!confidence) return;
  check_float(op, "confidence", *confidence);
  if (!std::equal(pixels.begin(), pixels.end(), confidence->sizes().begin(), confidence->sizes().end()))
    fail(op, "confidence must have shape ", list_of(pixels), ", a number for each pixel of maps, got ",
         shape_of(*confidence));
  check_same_device(op, "confidence", *confidence, "maps", maps);
}

}  // namespace dgcl
