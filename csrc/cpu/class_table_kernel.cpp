#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/counts.h"
#include "../ops/checks.h"

namespace dgcl {
namespace {

std::tuple<Tensor, Tensor> class_table_cpu(const Tensor& pixels, const Tensor& offsets,
                                           const std::optional<Tensor>& order, int64_t width, bool last) {
  const char* op = "class_table";
  check_class_table(pixels, offsets, order, width);
  const int64_t total = pixels.numel(), classes = offsets.numel() - 1;
  const std::vector<int64_t> offset = read_offsets(op, "offsets", offsets, total);
  const Tensor dense = torch::stable::contiguous(pixels),
               dense_order = torch::stable::contiguous(order.value_or(dense));
  const int64_t* pixel = static_cast<const int64_t*>(dense.const_data_ptr());
  const int64_t* ordered = order ? static_cast<const int64_t*>(dense_order.const_data_ptr()) : nullptr;
  Tensor entries = torch::stable::new_empty(pixels, {classes, width}),
         entry_pixels = torch::stable::new_empty(pixels, {classes, width});
  int64_t* entry = static_cast<int64_t*>(entries.mutable_data_ptr());
  int64_t* entry_pixel = static_cast<int64_t*>(entry_pixels.mutable_data_ptr());
  for (int64_t c = 0; c < classes; ++c) {
    const size_t at = static_cast<size_t>(c);
    for (int64_t i = 0; i < width; ++i) {
      const int64_t place = last ? std::max<int64_t>(offset[at + 1] - 1 - i, 0) : std::min(offset[at] + i, total - 1);
      const int64_t chosen = ordered ? ordered[place] : place;
      if (chosen < 0 || chosen >= total) fail(op, "order must lie in [0, ", total, "), got ", chosen);
      *entry++ = chosen;
      *entry_pixel++ = pixel[chosen];
    }
  }
  return {entries, entry_pixels};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("class_table", TORCH_BOX(&dgcl::class_table_cpu)); }
