// Counts and offsets on the CPU. A kernel reads rows by these numbers, so it checks them first.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "check.h"

namespace dgcl {

// The values of an int64 vector, each in [0, largest].
inline std::vector<int64_t> read_counts(const char* op, const char* name, const Tensor& t, int64_t largest) {
  const Tensor values = torch::stable::contiguous(t);
  const int64_t* data = static_cast<const int64_t*>(values.const_data_ptr());
  std::vector<int64_t> out(data, data + values.numel());
  for (int64_t value : out)
    if (value < 0 || value > largest) fail(op, name, " must lie in [0, ", largest, "], got ", value);
  return out;
}

// The same for offsets, which must not decrease.
inline std::vector<int64_t> read_offsets(const char* op, const char* name, const Tensor& t, int64_t largest) {
  std::vector<int64_t> out = read_counts(op, name, t, largest);
  for (size_t c = 1; c < out.size(); ++c)
    if (out[c] < out[c - 1]) fail(op, name, " must not decrease, got ", out[c - 1], " before ", out[c]);
  return out;
}

// Where each class begins in `total` pixels that are sorted by class, and the end of the last class.
inline std::vector<int64_t> read_starts(const char* op, const Tensor& pixel_counts, int64_t total) {
  const std::vector<int64_t> counts = read_counts(op, "pixel_counts", pixel_counts, total);
  std::vector<int64_t> starts(1, 0);
  for (int64_t count : counts) {
    if (count > total - starts.back())
      fail(op, "pixel_counts must sum to at most ", total, ", the number of pixels, got ", list_of(counts));
    starts.push_back(starts.back() + count);
  }
  return starts;
}

}  // namespace dgcl
