#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/counts.h"
#include "../common/parallel.h"
#include "../math/negatives.h"
#include "../ops/checks.h"

namespace dgcl {
namespace {

constexpr int64_t kEntriesPerItem = 1 << 15;

std::tuple<Tensor, Tensor> draw_negatives_cpu(const Tensor& pixels, const Tensor& pixel_counts, const Tensor& bits) {
  const char* op = "draw_negatives";
  check_draw_negatives(pixels, pixel_counts, bits);
  const int64_t total = pixels.numel(), classes = bits.size(0), limit = bits.size(1);
  const std::vector<int64_t> start = read_starts(op, pixel_counts, total);
  const Tensor dense = torch::stable::contiguous(pixels), words = torch::stable::contiguous(bits);
  const int64_t* pixel = static_cast<const int64_t*>(dense.const_data_ptr());
  const int64_t* word = static_cast<const int64_t*>(words.const_data_ptr());
  Tensor drawn = torch::stable::new_empty(pixels, {classes, limit}),
         counts = torch::stable::new_empty(pixels, {classes});
  int64_t* negative = static_cast<int64_t*>(drawn.mutable_data_ptr());
  int64_t* count = static_cast<int64_t*>(counts.mutable_data_ptr());
  const int64_t each = std::max<int64_t>(1, kEntriesPerItem / std::max<int64_t>(1, limit));  // classes of an item
  run_queue((classes + each - 1) / each, [&](auto& next) {
    for (int64_t item; (item = next()) >= 0;)
      for (int64_t c = item * each; c < std::min((item + 1) * each, classes); ++c) {
        const size_t at = static_cast<size_t>(c);
        const int64_t own = start[at + 1] - start[at];
        const ClassSegment segment = {start[at], own, start.back() - own};
        for (int64_t i = c * limit; i < (c + 1) * limit; ++i)
          negative[i] = pixel[std::min(negative_position(segment, i - c * limit, limit, word[i]), total - 1)];
        count[c] = std::min(segment.others, limit);
      }
  });
  return {drawn, counts};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("draw_negatives", TORCH_BOX(&dgcl::draw_negatives_cpu)); }
