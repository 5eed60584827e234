#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/parallel.h"
#include "../ops/checks.h"

namespace dgcl {
namespace {

constexpr int64_t kTilePixels = 64;  // neighbouring pixels that are read together

// Element (b, d, p) of a map is at b * image + d * channel + p * pixel.
struct MapLayout {
  int64_t images, dim, area, image, channel, pixel;

  explicit MapLayout(const Tensor& maps)
      : images(maps.size(0)),
        dim(maps.size(1)),
        area(maps.size(2) * maps.size(3)),
        image(maps.stride(0)),
        channel(maps.stride(1)),
        pixel(maps.size(3) == 1 ? maps.stride(2) : maps.stride(3)) {}  // the stride of a single column is arbitrary
};

// In a channel-first map each element of a row lies on a different page. So rows are sorted by tile of neighbouring
// pixels. Each plane of a tile is then read once, for all rows of the tile.
template <typename Word>
void gather(const MapLayout& map, const Word* maps, const int64_t* pixels, int64_t count, Word* out) {
  const int64_t tiles_per_image = (map.area + kTilePixels - 1) / kTilePixels, tiles = map.images * tiles_per_image;
  auto tile_of = [&](int64_t p) { return p / map.area * tiles_per_image + p % map.area / kTilePixels; };
  std::vector<int64_t> begin(static_cast<size_t>(tiles + 1), 0), rows(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) ++begin[static_cast<size_t>(tile_of(pixels[i]) + 1)];
  for (size_t t = 1; t < begin.size(); ++t) begin[t] += begin[t - 1];
  std::vector<int64_t> cursor(begin.begin(), begin.end() - 1);
  for (int64_t i = 0; i < count; ++i) rows[static_cast<size_t>(cursor[static_cast<size_t>(tile_of(pixels[i]))]++)] = i;
  run_queue(tiles, [&](auto& next) {
    std::vector<const Word*> from;
    std::vector<Word*> to;
    for (int64_t t; (t = next()) >= 0;) {
      from.clear();
      to.clear();
      for (int64_t i = begin[static_cast<size_t>(t)]; i < begin[static_cast<size_t>(t + 1)]; ++i) {
        const int64_t row = rows[static_cast<size_t>(i)], p = pixels[row];
        from.push_back(maps + p / map.area * map.image + p % map.area * map.pixel);
        to.push_back(out + row * map.dim);
      }
      for (int64_t d = 0; d < map.dim; ++d)
        for (size_t i = 0; i < from.size(); ++i) to[i][d] = from[i][d * map.channel];
    }
  });
}

Tensor gather_rows_cpu(const Tensor& maps, const Tensor& pixels) {
  check_gather_rows(maps, pixels);
  const bool rows_follow = maps.size(2) == 1 || maps.size(3) == 1 ||
                           maps.stride(2) == maps.size(3) * maps.stride(3);  // one stride covers all pixels
  const Tensor dense = rows_follow ? maps : torch::stable::contiguous(maps),
               dense_pixels = torch::stable::contiguous(pixels);
  const MapLayout map(dense);
  const int64_t* pixel = static_cast<const int64_t*>(dense_pixels.const_data_ptr());
  const int64_t count = dense_pixels.numel();
  for (int64_t i = 0; i < count; ++i)
    if (pixel[i] < 0 || pixel[i] >= map.images * map.area)
      fail("gather_rows", "indices must lie in [0, ", map.images * map.area, "), got ", pixel[i]);
  std::vector<int64_t> shape(pixels.sizes().begin(), pixels.sizes().end());
  shape.push_back(map.dim);
  Tensor out = torch::stable::new_empty(maps, shape);
  if (out.numel() == 0) return out;
  auto run = [&](auto word) {
    using Word = decltype(word);
    gather(map, static_cast<const Word*>(dense.const_data_ptr()), pixel, count,
           static_cast<Word*>(out.mutable_data_ptr()));
  };
  if (maps.element_size() == 8)
    run(uint64_t{});
  else if (maps.element_size() == 4)
    run(uint32_t{});
  else
    run(uint16_t{});
  return out;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("gather_rows", TORCH_BOX(&dgcl::gather_rows_cpu)); }
