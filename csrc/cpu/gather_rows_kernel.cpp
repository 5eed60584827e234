#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../common/maps.h"
#include "../common/parallel.h"
#include "../ops/checks.h"

namespace dgcl {
namespace {

constexpr int64_t kTilePixels = 64;  // neighbouring pixels that are read together

// Channel d of pixel p is d * channel after the pixel's place.
struct Maps {
  PixelLayout layout;
  int64_t pixels, dim, channel;

  explicit Maps(const Tensor& maps)
      : layout(pixel_layout(maps, 1)),
        pixels(count_pixels("gather_rows", "maps", maps.sizes(), 1)),
        dim(maps.size(1)),
        channel(maps.stride(1)) {}
};

// In a channel-first map each element of a row lies on a different page. So rows are sorted by tile of neighbouring
// pixels. Each plane of a tile is then read once, for all rows of the tile.
template <typename Word>
void gather(const Maps& maps, const Word* data, const int64_t* pixels, int64_t count, Word* out) {
  const int64_t tiles = (maps.pixels + kTilePixels - 1) / kTilePixels;
  auto tile_of = [&](int64_t p) { return p / kTilePixels; };
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
        const int64_t row = rows[static_cast<size_t>(i)];
        from.push_back(data + pixel_place(maps.layout, pixels[row]));
        to.push_back(out + row * maps.dim);
      }
      for (int64_t d = 0; d < maps.dim; ++d)
        for (size_t i = 0; i < from.size(); ++i) to[i][d] = from[i][d * maps.channel];
    }
  });
}

Tensor gather_rows_cpu(const Tensor& maps, const Tensor& pixels) {
  check_gather_rows(maps, pixels);
  const Tensor dense_pixels = torch::stable::contiguous(pixels);
  const Maps given(maps);
  const int64_t* pixel = static_cast<const int64_t*>(dense_pixels.const_data_ptr());
  const int64_t count = dense_pixels.numel();
  for (int64_t i = 0; i < count; ++i)
    if (pixel[i] < 0 || pixel[i] >= given.pixels)
      fail("gather_rows", "indices must lie in [0, ", given.pixels, "), got ", pixel[i]);
  std::vector<int64_t> shape(pixels.sizes().begin(), pixels.sizes().end());
  shape.push_back(given.dim);
  Tensor out = torch::stable::new_empty(maps, shape);
  if (out.numel() == 0) return out;
  auto run = [&](auto word) {
    using Word = decltype(word);
    gather(given, static_cast<const Word*>(maps.const_data_ptr()), pixel, count,
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

// ---- backward ----

constexpr int64_t kMostPlanePixels = 32768;  // of a tile. One channel of a tile stays in the L2 cache.
constexpr int64_t kTileChannels = 16;        // of a tile, since a cache line of a row has 16 float32 elements

// The rows in the order of their pixels. Rows of one pixel are in ascending order.
struct RowsByPixel {
  std::vector<int64_t> begin;  // [pixels + 1], the place in `rows` of the first row of a pixel
  std::vector<int64_t> rows;

  RowsByPixel(const int64_t* pixels, int64_t count, int64_t num_pixels)
      : begin(static_cast<size_t>(num_pixels + 1), 0), rows(static_cast<size_t>(count)) {
    for (int64_t i = 0; i < count; ++i) ++begin[static_cast<size_t>(pixels[i])];
    for (size_t p = 1; p < begin.size(); ++p) begin[p] += begin[p - 1];
    // begin[p] is the end of pixel p. Filling from the end turns it into the beginning.
    for (int64_t i = count - 1; i >= 0; --i) rows[static_cast<size_t>(--begin[static_cast<size_t>(pixels[i])])] = i;
  }
};

// A pixel of a tile with the rows that chose it.
template <typename Stored>
struct ChosenPixel {
  int64_t at;                // in the tile
  const Stored* const* row;  // the first of its rows
  int64_t count;             // of its rows, at least 1
};

// The sum of one channel, in ascending order of the rows. A single row keeps its bits.
template <typename Stored>
Stored sum_of_rows(const ChosenPixel<Stored>& pixel, int64_t channel) {
  using Sum = std::conditional_t<std::is_same_v<Stored, double>, double, float>;
  const Stored first = pixel.row[0][channel];
  if (pixel.count == 1) return first;
  Sum sum = static_cast<Sum>(first);
  for (int64_t i = 1; i < pixel.count; ++i) sum += static_cast<Sum>(pixel.row[i][channel]);
  return static_cast<Stored>(sum);
}

// maps [images, dim, area], contiguous. A tile has neighbouring pixels and some channels of one image. Each plane of a
// tile is cleared, and gets its sums while it is in the cache.
template <typename Stored>
void scatter(const Stored* dL_drows, const int64_t* pixels, int64_t count, int64_t images, int64_t dim, int64_t area,
             Stored* dL_dmaps) {
  const RowsByPixel sorted(pixels, count, images * area);
  const int64_t parts = (area + kMostPlanePixels - 1) / kMostPlanePixels, part_pixels = (area + parts - 1) / parts,
                channel_tiles = (dim + kTileChannels - 1) / kTileChannels;
  run_queue(images * parts * channel_tiles, [&](auto& next) {
    std::vector<const Stored*> rows;
    std::vector<ChosenPixel<Stored>> chosen;
    for (int64_t tile; (tile = next()) >= 0;) {
      const int64_t channel = tile % channel_tiles * kTileChannels,
                    last_channel = std::min(channel + kTileChannels, dim), part = tile / channel_tiles % parts,
                    image = tile / channel_tiles / parts;
      const int64_t first = std::min(part * part_pixels, area), end = std::min(first + part_pixels, area);
      const int64_t first_row = sorted.begin[static_cast<size_t>(image * area + first)],
                    end_row = sorted.begin[static_cast<size_t>(image * area + end)];
      rows.resize(static_cast<size_t>(end_row - first_row));
      chosen.clear();
      for (int64_t i = first_row; i < end_row; ++i) {
        const int64_t row = sorted.rows[static_cast<size_t>(i)], at = pixels[row] - image * area - first;
        const Stored** place = rows.data() + (i - first_row);
        *place = dL_drows + row * dim;
        if (chosen.empty() || chosen.back().at != at)
          chosen.push_back({at, place, 1});
        else
          ++chosen.back().count;
      }
      for (int64_t d = channel; d < last_channel; ++d) {
        Stored* plane = dL_dmaps + (image * dim + d) * area + first;
        std::fill_n(plane, end - first, Stored(0));
        for (const ChosenPixel<Stored>& pixel : chosen) plane[pixel.at] = sum_of_rows(pixel, d);
      }
    }
  });
}

Tensor gather_rows_backward_cpu(const Tensor& dL_drows, const Tensor& pixels, std::vector<int64_t> shape) {
  check_gather_rows_backward(dL_drows, pixels, shape);
  const Tensor rows = torch::stable::contiguous(dL_drows), dense_pixels = torch::stable::contiguous(pixels);
  const int64_t* pixel = static_cast<const int64_t*>(dense_pixels.const_data_ptr());
  const int64_t images = shape[0], dim = shape[1], count = dense_pixels.numel();
  const int64_t num_pixels = count_pixels("gather_rows_backward", "shape", shape, 1);
  for (int64_t i = 0; i < count; ++i)
    if (pixel[i] < 0 || pixel[i] >= num_pixels)
      fail("gather_rows_backward", "indices must lie in [0, ", num_pixels, "), got ", pixel[i]);
  Tensor dL_dmaps = torch::stable::new_empty(dL_drows, shape);
  if (dL_dmaps.numel() == 0) return dL_dmaps;
  auto run = [&](auto stored) {
    using Stored = decltype(stored);
    scatter(static_cast<const Stored*>(rows.const_data_ptr()), pixel, count, images, dim, num_pixels / images,
            static_cast<Stored*>(dL_dmaps.mutable_data_ptr()));
  };
  switch (dL_drows.scalar_type()) {
    case ScalarType::Half:
      run(c10::Half{});
      break;
    case ScalarType::BFloat16:
      run(c10::BFloat16{});
      break;
    case ScalarType::Float:
      run(float{});
      break;
    default:
      run(double{});
  }
  return dL_dmaps;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) {
  m.impl("gather_rows", TORCH_BOX(&dgcl::gather_rows_cpu));
  m.impl("gather_rows_backward", TORCH_BOX(&dgcl::gather_rows_backward_cpu));
}
