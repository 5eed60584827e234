// Reads queries and bank rows as rows of T, of unit length for cosine.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "../../math/length_bound.h"
#include "problem.h"

namespace dgcl {

template <typename T>
class KnnRows {
 public:
  explicit KnnRows(const KnnProblem& problem) : p(problem), prims(primitives<T>()) {}

  static constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

  // Whether bank rows are read in place.
  static bool read_in_place(const KnnProblem& p) {
    return p.bank.dtype == kType && (p.metric != Metric::cosine || p.unit_bank);
  }

  const KnnProblem& p;
  const Primitives<T>& prims;

  void load_query(int64_t i, T* out) const {
    load_row(prims, p.queries.dtype, p.queries.row(i), p.dim, out);
    if (p.metric == Metric::cosine) unit_row(prims, out, p.dim, out);
  }

  // In place if possible, else in `scratch`.
  const T* bank_row(int64_t group, int64_t i, T* scratch) const {
    const char* stored = p.bank.row(i, group);
    if (read_in_place(p)) return reinterpret_cast<const T*>(stored);
    load_row(prims, p.bank.dtype, stored, p.dim, scratch);
    if (p.metric == Metric::cosine && !p.unit_bank) unit_row(prims, scratch, p.dim, scratch);
    return scratch;
  }

  // An upper bound of |x|, from the canonical <x, x>. Also valid if that sum left the normal range. NaN if x has a NaN.
  T norm_bound(const T* x, T square) const {
    if (is_safe_square(square) || std::isnan(square)) return length_bound(square);
    T largest = 0;
    for (int64_t d = 0; d < p.dim; ++d) largest = std::max(largest, std::fabs(x[d]));
    return length_bound_of_largest(largest, p.dim);
  }

  // Whether the norm is infinite, or so large that products of two such rows could overflow. A filter cannot bound such
  // rows.
  static bool has_large_norm(T norm) { return !(norm < std::sqrt(std::numeric_limits<T>::max()) * T(0x1p-10)); }

  // The bias of a bank row that a filter cannot bound: -infinity with a NaN, since it cannot be a neighbour, and
  // +infinity with a large norm. 0 for all other rows.
  static T special_bias(T norm) {
    const T infinity = std::numeric_limits<T>::infinity();
    return std::isnan(norm) ? -infinity : has_large_norm(norm) ? infinity : T(0);
  }
};

}  // namespace dgcl
