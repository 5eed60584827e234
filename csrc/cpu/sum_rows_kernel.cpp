// Sums of table rows, in the order of the table. So the bits are the same for any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "../common/counts.h"
#include "../common/parallel.h"
#include "../ops/checks.h"
#include "rows.h"

namespace dgcl {
namespace {

struct Table {
  const int64_t* indices;  // [classes, width], or nullptr for row j at place j
  int64_t width;
  std::vector<int64_t> counts;  // [classes]

  int64_t row(int64_t c, int64_t j) const { return indices ? indices[c * width + j] : j; }
};

template <typename T>
void sum_class(const RowSource& rows, const Table& table, int64_t c, int64_t dim, T* scratch, T* sum) {
  const bool converts = rows.dtype != (sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  std::fill_n(sum, dim, T(0));
  for (int64_t j = 0; j < table.counts[static_cast<size_t>(c)]; ++j) {
    const char* row = rows.row(table.row(c, j), c);
    if (converts) load_row(primitives<T>(), rows.dtype, row, dim, scratch);
    const T* x = converts ? scratch : reinterpret_cast<const T*>(row);
    for (int64_t d = 0; d < dim; ++d) sum[d] += x[d];
  }
}

template <typename T>
void sum_classes(const RowSource& rows, const Table& table, int64_t dim, T* sums) {
  run_queue(static_cast<int64_t>(table.counts.size()), [&](auto& next) {
    Buffer<T> scratch(dim);
    for (int64_t c; (c = next()) >= 0;) sum_class(rows, table, c, dim, scratch.get(), sums + c * dim);
  });
}

Tensor sum_rows_cpu(const Tensor& rows, std::optional<Tensor> indices, const Tensor& row_counts, bool in_float64) {
  check_sum_rows(rows, indices, row_counts);
  const int64_t num_rows = rows.size(rows.dim() - 2), dim = rows.size(rows.dim() - 1);
  Tensor keep_rows, keep_indices;
  Table table{nullptr, indices ? indices->size(1) : num_rows, {}};
  table.counts = read_counts("sum_rows", "row_counts", row_counts, table.width);
  if (indices) {
    keep_indices = torch::stable::contiguous(*indices);
    table.indices = static_cast<const int64_t*>(keep_indices.const_data_ptr());
    for (int64_t c = 0; c < row_counts.numel(); ++c)
      for (int64_t j = 0; j < table.counts[static_cast<size_t>(c)]; ++j)
        if (table.row(c, j) < 0 || table.row(c, j) >= num_rows)
          fail("sum_rows", "indices must lie in [0, ", num_rows, "), got ", table.row(c, j));
  }
  const bool wide = in_float64 || rows.scalar_type() == ScalarType::Double;
  Tensor sums =
      torch::stable::new_empty(rows, {row_counts.numel(), dim}, wide ? ScalarType::Double : ScalarType::Float);
  const RowSource source = row_source(rows, keep_rows);
  if (wide)
    sum_classes(source, table, dim, static_cast<double*>(sums.mutable_data_ptr()));
  else
    sum_classes(source, table, dim, static_cast<float*>(sums.mutable_data_ptr()));
  return sums;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("sum_rows", TORCH_BOX(&dgcl::sum_rows_cpu)); }
