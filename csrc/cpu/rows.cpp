#include "rows.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace dgcl {
namespace {

template <typename T, typename Stored>
void store_as(const T* x, int64_t dim, char* row) {
  Stored* out = reinterpret_cast<Stored*>(row);
  for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<Stored>(x[d]);
}

template <typename T>
void store(ScalarType dtype, const T* x, int64_t dim, char* row) {
  switch (dtype) {
    case ScalarType::Half:
      return store_as<T, c10::Half>(x, dim, row);
    case ScalarType::BFloat16:
      return store_as<T, c10::BFloat16>(x, dim, row);
    case ScalarType::Float:
      return store_as<T, float>(x, dim, row);
    default:
      return store_as<T, double>(x, dim, row);
  }
}

}  // namespace

void store_row(ScalarType dtype, const float* x, int64_t dim, char* row) { store(dtype, x, dim, row); }
void store_row(ScalarType dtype, const double* x, int64_t dim, char* row) { store(dtype, x, dim, row); }

}  // namespace dgcl
