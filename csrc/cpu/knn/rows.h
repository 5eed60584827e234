// What a search reads: queries and bank rows as rows of T, normalised where the metric asks for it.
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

  // Whether the bank's rows can be read in place.
  static bool stored_as_wanted(const KnnProblem& p) {
    return p.bank.dtype == kType && (p.metric != Metric::cosine || p.unit_bank);
  }

  const KnnProblem& p;
  const Primitives<T>& prims;

  void load_query(int64_t i, T* out) const {
    load_row(prims, p.queries.dtype, p.queries.row(i), p.dim, out);
    if (p.metric == Metric::cosine) unit_row(prims, out, p.dim, out);
  }

  // In place where it is stored as it is wanted, else in `scratch`.
  const T* bank_row(int64_t group, int64_t i, T* scratch) const {
    const char* stored = p.bank.row(i, group);
    if (stored_as_wanted(p)) return reinterpret_cast<const T*>(stored);
    load_row(prims, p.bank.dtype, stored, p.dim, scratch);
    if (p.metric == Metric::cosine && !p.unit_bank) unit_row(prims, scratch, p.dim, scratch);
    return scratch;
  }

  // An upper bound of |x| from the canonical <x, x>, safe where that sum left the normal range. NaN where x has one.
  T norm_bound(const T* x, T square) const {
    if (is_safe_square(square) || std::isnan(square)) return length_bound(square);
    T largest = 0;
    for (int64_t d = 0; d < p.dim; ++d) largest = std::max(largest, std::fabs(x[d]));
    return length_bound_of_largest(largest, p.dim, kLengthMargin<T>);
  }

  // So long, or infinite, that products of two such rows could overflow: a filter passes them on, unjudged.
  static bool is_loud(T norm) { return !(norm < std::sqrt(std::numeric_limits<T>::max()) * T(0x1p-10)); }

  // What a filter scores a bank row with that it cannot judge: -infinity if it has a NaN, for it is no neighbour, and
  // +infinity if it is loud. 0 for all others.
  static T beyond_filter(T norm) {
    const T infinity = std::numeric_limits<T>::infinity();
    return std::isnan(norm) ? -infinity : is_loud(norm) ? infinity : T(0);
  }
};

}  // namespace dgcl
