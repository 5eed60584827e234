#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/maps.h"
#include "checks.h"

namespace dgcl {
namespace {

// The shape without the channels.
std::vector<int64_t> pixels_of(const Tensor& maps) {
  std::vector<int64_t> shape(maps.sizes().begin(), maps.sizes().end());
  shape.erase(shape.begin() + 1);
  return shape;
}

}  // namespace

void check_finite_rows(const Tensor& maps, const std::optional<Tensor>& other_maps,
                       const std::optional<Tensor>& confidence) {
  const char* op = "finite_rows";
  check_float(op, "maps", maps);
  if (maps.dim() < 2 || maps.dim() > 2 + kMostSpatial)
    fail(op, "maps must have shape [B, D, *S] with 1 to 6 spatial dimensions, or [M, D], got ", shape_of(maps));
  const std::vector<int64_t> pixels = pixels_of(maps);
  count_pixels(op, "maps", maps.sizes(), 1);
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
