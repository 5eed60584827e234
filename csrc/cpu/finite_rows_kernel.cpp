// Which pixels hold no inf or NaN. Both have an exponent with every bit set, so numbers are compared as words.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "../common/parallel.h"
#include "../ops/checks.h"

namespace dgcl {
namespace {

constexpr int64_t kTilePixels = 2048;  // neighbouring pixels. Their marks stay in the L1 cache.
constexpr int64_t kChannels = 4;       // read together, so that marks are loaded and stored less often

// Element (b, d, y, x) is at b * image + d * channel + y * row + x * pixel. [M, D] is one image of one row.
struct Maps {
  const void* data;
  ScalarType dtype;
  int64_t dim, height, width, image, channel, row, pixel;

  // The shape is [images, dim, height, width], [dim of one pixel] or, without channels, [images, height, width].
  Maps(const Tensor& t, bool has_channels) : data(t.const_data_ptr()), dtype(t.scalar_type()) {
    const int64_t first = has_channels ? 2 : 1;  // the dimension after images and channels
    const bool flat = t.dim() == first;
    dim = has_channels ? t.size(1) : 1;
    channel = has_channels ? t.stride(1) : 1;
    height = flat ? 1 : t.size(first);
    width = flat ? t.size(0) : t.size(first + 1);
    image = flat ? 0 : t.stride(0);
    row = flat ? 0 : t.stride(first);
    pixel = flat ? t.stride(0) : t.stride(first + 1);
  }
  bool rows_follow() const { return height == 1 || width == 1 || row == width * pixel; }
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
  const int64_t images = maps.dim() == 2 ? 1 : maps.size(0);
  if (std::all_of(given.begin(), given.end(), [](const Maps& m) { return m.rows_follow(); }))
    for (Maps& m : given) {  // one row per image
      m.pixel = m.width == 1 ? m.row : m.pixel;
      m.width *= m.height;
      m.height = 1;
    }
  const int64_t height = given[0].height, width = given[0].width, tiles = (width + kTilePixels - 1) / kTilePixels;
  Tensor out = torch::stable::new_empty(maps, {images * height * width}, ScalarType::Bool);
  bool* finite = static_cast<bool*>(out.mutable_data_ptr());
  std::fill_n(finite, out.numel(), true);
  run_queue(images * height * tiles, [&](auto& next) {
    for (int64_t tile; (tile = next()) >= 0;) {
      const int64_t x = tile % tiles * kTilePixels, y = tile / tiles % height, b = tile / tiles / height;
      const int64_t count = std::min(kTilePixels, width - x);
      for (const Maps& m : given)
        mark_run(m, b * m.image + y * m.row + x * m.pixel, count, finite + (b * height + y) * width + x);
    }
  });
  return out;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("finite_rows", TORCH_BOX(&dgcl::finite_rows_cpu)); }
