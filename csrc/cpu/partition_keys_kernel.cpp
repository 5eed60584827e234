#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/parallel.h"
#include "../math/partition_key.h"
#include "../ops/checks.h"

namespace dgcl {
namespace {

constexpr int64_t kPixelsPerPart = 1 << 15;
constexpr int64_t kCacheLine = 64 / sizeof(int64_t);

template <typename Label>
void partition(const Tensor& labels, const Tensor& usable, const Tensor& bits, int64_t num_classes,
               int64_t ignore_index, Tensor& keys, Tensor& counts) {
  const Label* label = static_cast<const Label*>(labels.const_data_ptr());
  const uint8_t* is_usable = static_cast<const uint8_t*>(usable.const_data_ptr());
  const int64_t* word = static_cast<const int64_t*>(bits.const_data_ptr());
  int64_t* key = static_cast<int64_t*>(keys.mutable_data_ptr());
  int64_t* total = static_cast<int64_t*>(counts.mutable_data_ptr());
  const int64_t num_pixels = labels.numel(), slots = num_classes + kSkippedSlots;
  const auto slot_of = [&](int64_t i) { return pixel_slot(label[i], is_usable[i] != 0, num_classes, ignore_index); };

  // Each part has a histogram, the first one in `total`. They take no more memory than the pixels do.
  const int64_t most = std::min(thread_count(), num_pixels / std::max(kPixelsPerPart, slots));
  const int64_t parts = std::max<int64_t>(1, most), stride = slots + kCacheLine;
  std::vector<int64_t> others(static_cast<size_t>((parts - 1) * stride));
  std::fill_n(total, slots, int64_t(0));
  run_queue(parts, [&](auto& next) {
    for (int64_t part; (part = next()) >= 0;) {
      int64_t* own = part == 0 ? total : others.data() + (part - 1) * stride;
      const int64_t end = (part + 1) * num_pixels / parts;
      for (int64_t i = part * num_pixels / parts; i < end; ++i) {
        const int64_t slot = slot_of(i);
        key[i] = partition_key(slot, num_classes, word[i]);
        ++own[slot];
      }
    }
  });
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t slot = 0; slot < slots; ++slot) total[slot] += others[(part - 1) * stride + slot];

  const int64_t outside = num_classes + 2;
  if (total[outside] == 0) return;
  int64_t stray = 0;
  while (slot_of(stray) != outside) ++stray;
  fail("partition_keys", "labels must lie in [0, ", num_classes, ") or equal ignore_index ", ignore_index, ", got ",
       static_cast<int64_t>(label[stray]));
}

std::tuple<Tensor, Tensor> partition_keys_cpu(const Tensor& labels, const Tensor& usable, const Tensor& bits,
                                              int64_t num_classes, int64_t ignore_index) {
  check_partition_keys(labels, usable, bits, num_classes);
  Tensor keys = torch::stable::new_empty(labels, {labels.numel()}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(labels, {num_classes + kSkippedSlots}, ScalarType::Long);
  const auto run = [&](auto* partition_of) {
    partition_of(torch::stable::contiguous(labels), torch::stable::contiguous(usable), torch::stable::contiguous(bits),
                 num_classes, ignore_index, keys, counts);
  };
  switch (labels.scalar_type()) {
    case ScalarType::Long:
      run(&partition<int64_t>);
      break;
    case ScalarType::Int:
      run(&partition<int32_t>);
      break;
    case ScalarType::Short:
      run(&partition<int16_t>);
      break;
    case ScalarType::Char:
      run(&partition<int8_t>);
      break;
    default:
      run(&partition<uint8_t>);
  }
  return {keys, counts};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("partition_keys", TORCH_BOX(&dgcl::partition_keys_cpu)); }
