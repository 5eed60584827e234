// What the host passes to kernels: plain data, without PyTorch's or CUDA's headers.
#pragma once
#include <cstdint>

namespace dgcl {

enum class Dtype : int32_t { float64, float32, float16, bfloat16 };

// Row i of group g starts `g * group_stride + i * row_stride` elements after `data`. Its elements are contiguous.
struct RowView {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t group_stride = 0;
  Dtype dtype = Dtype::float32;
};

constexpr int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// The size of RowNorm<double> or RowNorm<float> (csrc/math/unit_row.h).
constexpr int64_t row_norm_bytes(bool is_double) { return is_double ? 16 : 8; }

// The text of an error code that a launch function returned. 0 is success.
const char* cuda_error_text(int error);

}  // namespace dgcl
