// Which pixels hold no inf or NaN. Both have an exponent with every bit set, so numbers are compared as words.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "../common/maps.h"
#include "../common/parallel.h"
#include "../ops/checks.h"

namespace dgcl {
namespace {

constexpr int64_t kTilePixels = 2048;  // neighbouring pixels. Their marks stay in the L1 cache.
constexpr int64_t kChannels = 4;       // read together, so that marks are loaded and stored less often

// Channel d of pixel p is d * channel after the pixel's place.
struct Maps {
  const void* data;
  ScalarType dtype;
  PixelLayout layout;
  int64_t dim, channel, pixel;  // a pixel of the innermost side is `pixel` after the one before

  Maps(const Tensor& t, bool has_channels)
      : data(t.const_data_ptr()),
        dtype(t.scalar_type()),
        layout(pixel_layout(t, has_channels ? 1 : -1)),
        dim(has_channels ? t.size(1) : 1),
        channel(has_channels ? t.stride(1) : 1),
        pixel(layout.strides[0]) {}
};

template <typename Word>
Word mark(Word word, Word exponent) {
  return (word & exponent) == exponent ? static_cast<Word>(-1) : Word(0);
}

// Clears finite[i] if pixel i of a run has an inf or NaN. `from` is its first pixel.
template <typename Word>
void mark_run(const Maps& maps, Word exponent, const Word* from, int64_t count, bool* finite) {
  if (maps.channel == 1 && maps.dim > 1) {
    for (int64_t i = 0; i < count; ++i) {
      const Word* x = from + i * maps.pixel;
      Word found = 0;
      for (int64_t d = 0; d < maps.dim; ++d) found |= mark(x[d], exponent);
      finite[i] = finite[i] && found == 0;
    }
    return;
  }
  std::array<Word, kTilePixels> found;
  std::fill_n(found.begin(), count, Word(0));
  int64_t d = 0;
  if (maps.pixel == 1)
    for (; d + kChannels <= maps.dim; d += kChannels) {
      const Word *x = from + d * maps.channel, *y = x + maps.channel, *z = y + maps.channel, *w = z + maps.channel;
      for (int64_t i = 0; i < count; ++i)
        found[i] |= mark(x[i], exponent) | mark(y[i], exponent) | mark(z[i], exponent) | mark(w[i], exponent);
    }
  for (; d < maps.dim; ++d)
    for (int64_t i = 0; i < count; ++i) found[i] |= mark(from[d * maps.channel + i * maps.pixel], exponent);
  for (int64_t i = 0; i < count; ++i) finite[i] = finite[i] && found[i] == 0;
}

void mark_run(const Maps& maps, int64_t first, int64_t count, bool* finite) {
  auto words = [&](auto exponent) {
    using Word = decltype(exponent);
    mark_run<Word>(maps, exponent, static_cast<const Word*>(maps.data) + first, count, finite);
  };
  switch (maps.dtype) {
    case ScalarType::Half:
      return words(uint16_t(0x7c00));
    case ScalarType::BFloat16:
      return words(uint16_t(0x7f80));
    case ScalarType::Float:
      return words(uint32_t(0x7f800000));
    default:
      return words(uint64_t(0x7ff0000000000000));
  }
}

Tensor finite_rows_cpu(const Tensor& maps, std::optional<Tensor> other_maps, std::optional<Tensor> confidence) {
  check_finite_rows(maps, other_maps, confidence);
  std::vector<Maps> given = {Maps(maps, true)};
  if (other_maps) given.emplace_back(*other_maps, true);
  if (confidence) given.emplace_back(*confidence, false);
  const int64_t pixels = count_pixels("finite_rows", "maps", maps.sizes(), 1);
  Tensor out = torch::stable::new_empty(maps, {pixels}, ScalarType::Bool);
  bool* finite = static_cast<bool*>(out.mutable_data_ptr());
  std::fill_n(finite, pixels, true);
  run_queue((pixels + kTilePixels - 1) / kTilePixels, [&](auto& next) {
    for (int64_t tile; (tile = next()) >= 0;) {
      const int64_t end = std::min((tile + 1) * kTilePixels, pixels);
      for (const Maps& m : given)
        for (int64_t p = tile * kTilePixels, count; p < end; p += count) {
          count = std::min(end - p, m.layout.sizes[0] - p % m.layout.sizes[0]);  // the rest of a side
          mark_run(m, pixel_place(m.layout, p), count, finite + p);
        }
    }
  });
  return out;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("finite_rows", TORCH_BOX(&dgcl::finite_rows_cpu)); }
