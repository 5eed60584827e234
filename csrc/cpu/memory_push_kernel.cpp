#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../common/counts.h"
#include "../common/parallel.h"
#include "../ops/checks.h"
#include "rows.h"

namespace dgcl {
namespace {

struct Ring {
  char* data;
  int64_t dim, row_bytes;
  ScalarType dtype;

  Ring(const Tensor& t, int64_t row_dim)
      : data(static_cast<char*>(t.mutable_data_ptr())),
        dim(row_dim),
        row_bytes(row_dim * static_cast<int64_t>(t.element_size())),
        dtype(t.scalar_type()) {}
};

// Copies row i of class c into `slot`, converted through T. Exact if the dtypes agree.
template <typename T>
void copy_row(const RowSource& from, int64_t c, int64_t i, const Ring& ring, int64_t slot, bool normalize, T* scratch) {
  load_row(primitives<T>(), from.dtype, from.row(i, c), ring.dim, scratch);
  if (normalize) unit_row(primitives<T>(), scratch, ring.dim, scratch);
  store_row(ring.dtype, scratch, ring.dim, ring.data + slot * ring.row_bytes);
}

void memory_push_cpu(const Tensor& bank_features, const Tensor& bank_projections, const Tensor& bank_density,
                     const Tensor& counts, const Tensor& heads, const Tensor& features, const Tensor& projections,
                     const Tensor& density, const Tensor& row_counts, bool normalize) {
  check_memory_push(bank_features, bank_projections, bank_density, counts, heads, features, projections, density,
                    row_counts);
  const char* op = "memory_push";
  const int64_t classes = bank_features.size(0), capacity = bank_features.size(1), rows = features.size(1);
  const std::vector<int64_t> arriving = read_counts(op, "row_counts", row_counts, rows);
  const std::vector<int64_t> filled = read_counts(op, "counts", counts, capacity);
  const std::vector<int64_t> head = read_counts(op, "heads", heads, capacity - 1);
  Tensor keep_features, keep_projections;
  const RowSource feature_rows = row_source(features, keep_features),
                  projection_rows = row_source(projections, keep_projections);
  const Tensor densities = torch::stable::contiguous(density);
  RowSource density_rows;  // [C, P] read as C groups of P one-element rows
  density_rows.data = static_cast<const char*>(densities.const_data_ptr());
  density_rows.row_bytes = static_cast<int64_t>(densities.element_size());
  density_rows.group_bytes = rows * density_rows.row_bytes;
  density_rows.dtype = densities.scalar_type();
  const Ring feature_ring(bank_features, bank_features.size(2)),
      projection_ring(bank_projections, bank_projections.size(2)), density_ring(bank_density, 1);

  run_queue(classes, [&](auto& next) {
    Buffer<double> scratch(std::max<int64_t>({feature_ring.dim, projection_ring.dim, 1}));
    float* narrow = reinterpret_cast<float*>(scratch.get());
    const bool wide_features = compute_type(bank_features, features) == ScalarType::Double;
    for (int64_t c; (c = next()) >= 0;) {
      for (int64_t i = std::max<int64_t>(0, arriving[c] - capacity); i < arriving[c]; ++i) {
        const int64_t slot = c * capacity + (head[c] + i) % capacity;
        if (wide_features)
          copy_row<double>(feature_rows, c, i, feature_ring, slot, normalize, scratch.get());
        else
          copy_row<float>(feature_rows, c, i, feature_ring, slot, normalize, narrow);
        copy_row<double>(projection_rows, c, i, projection_ring, slot, false, scratch.get());
        copy_row<double>(density_rows, c, i, density_ring, slot, false, scratch.get());
      }
    }
  });
  int64_t* count = static_cast<int64_t*>(counts.mutable_data_ptr());
  int64_t* next_slot = static_cast<int64_t*>(heads.mutable_data_ptr());
  for (int64_t c = 0; c < classes; ++c) {
    count[c] = std::min(capacity, filled[c] + arriving[c]);
    next_slot[c] = (head[c] + arriving[c]) % capacity;
  }
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("memory_push", TORCH_BOX(&dgcl::memory_push_cpu)); }
