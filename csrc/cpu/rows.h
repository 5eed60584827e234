// Reads and writes rows of any supported dtype as rows of the compute type.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "../common/check.h"
#include "../math/unit_row.h"
#include "simd/primitives.h"

namespace dgcl {

// A matrix whose rows are contiguous. The distance between rows is arbitrary.
struct RowSource {
  const char* data = nullptr;
  int64_t row_bytes = 0;    // distance between rows
  int64_t group_bytes = 0;  // distance between groups, for [C, N, D]
  ScalarType dtype = ScalarType::Float;

  const char* row(int64_t i, int64_t group = 0) const { return data + group * group_bytes + i * row_bytes; }
};

// `t` [N, D] or [C, N, D]. Uses the tensor in place if its last dimension is contiguous, else a copy. `keep` owns the
// memory.
inline RowSource row_source(const Tensor& t, Tensor& keep) {
  keep = t;
  if (t.numel() > 0 && t.size(t.dim() - 1) > 1 && t.stride(t.dim() - 1) != 1) keep = torch::stable::contiguous(t);
  const int64_t bytes = static_cast<int64_t>(keep.element_size());
  RowSource source;
  source.data = static_cast<const char*>(keep.const_data_ptr());
  source.row_bytes = keep.stride(keep.dim() - 2) * bytes;
  source.group_bytes = keep.dim() == 3 ? keep.stride(0) * bytes : 0;
  source.dtype = keep.scalar_type();
  return source;
}

// One row, widened to T. Exact except for float64 -> float32, which no operator uses.
template <typename T>
void load_row(const Primitives<T>& prims, ScalarType dtype, const char* row, int64_t dim, T* out) {
  switch (dtype) {
    case ScalarType::Half:
      prims.from_half(reinterpret_cast<const uint16_t*>(row), dim, out);
      break;
    case ScalarType::BFloat16:
      prims.from_bfloat16(reinterpret_cast<const uint16_t*>(row), dim, out);
      break;
    case ScalarType::Float: {
      const float* x = reinterpret_cast<const float*>(row);
      if constexpr (sizeof(T) == sizeof(float)) {
        std::copy_n(x, dim, out);  // not memcpy: rows without elements have null pointers
      } else {
        for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<T>(x[d]);
      }
      break;
    }
    default: {
      const double* x = reinterpret_cast<const double*>(row);
      for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<T>(x[d]);
    }
  }
}

// Stores a row in an output's dtype, rounded to nearest even.
void store_row(ScalarType dtype, const float* x, int64_t dim, char* row);
void store_row(ScalarType dtype, const double* x, int64_t dim, char* row);

// Uninitialised, 64-byte aligned scratch memory.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0) : size_(size) {
    if (size <= 0) return;
    void* memory = nullptr;
    if (static_cast<size_t>(size) <= PTRDIFF_MAX / sizeof(T))
      memory = ::operator new(static_cast<size_t>(size) * sizeof(T), std::align_val_t(64), std::nothrow);
    if (!memory) fail("dgcl_ops", "out of memory: a thread needs ", size, " elements of ", sizeof(T), " bytes");
    data_.reset(static_cast<T*>(memory));
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_;
};

}  // namespace dgcl
