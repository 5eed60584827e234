// A filter in T: the same products as the canonical score, added in a faster order.
#pragma once
#include <vector>

#include "../../common/parallel.h"
#include "../../math/filter_bound.h"
#include "../panel.h"
#include "rows.h"

namespace dgcl {

// What the filter knows about each bank row. Computed once per call.
template <typename T>
struct FloatBank {
  struct Group {
    T largest_norm = 0;
    int64_t large_norms = 0;
    T* bias = nullptr;  // [bank_rows], added to the product; KnnRows::special_bias for rows without a bound
  };
  std::vector<Group> groups;
  Buffer<T> bias;

  FloatBank(const KnnRows<T>& rows, const std::vector<int64_t>& chosen)
      : groups(rows.p.counts.size()), bias(static_cast<int64_t>(chosen.size()) * rows.p.bank_rows) {
    const KnnProblem& p = rows.p;
    run_queue(static_cast<int64_t>(chosen.size()), [&](auto& next) {
      Buffer<T> scratch(p.dim);
      for (int64_t place; (place = next()) >= 0;) {
        const int64_t group = chosen[static_cast<size_t>(place)];
        Group& whole = groups[static_cast<size_t>(group)];
        whole.bias = bias.get() + place * p.bank_rows;
        for (int64_t i = 0; i < p.counts[static_cast<size_t>(group)]; ++i) {
          const T* row = rows.bank_row(group, i, scratch.get());
          const T square = rows.prims.dot(row, row, p.dim), norm = rows.norm_bound(row, square);
          whole.bias[i] = KnnRows<T>::special_bias(norm);
          whole.large_norms += whole.bias[i] > 0;
          if (whole.bias[i] != 0) continue;
          if (p.metric == Metric::l2) whole.bias[i] = -square / 2;
          whole.largest_norm = std::max(whole.largest_norm, norm);
        }
      }
    });
  }
};

template <typename T>
class FloatFilter {
 public:
  static constexpr bool kExact = false;

  FloatFilter(const KnnRows<T>& rows, const FloatBank<T>& bank, int64_t block)
      : rows_(rows),
        bank_(bank),
        gamma_(filter_gamma<T>(rows.p.dim)),
        underflow_(filter_underflow<T>(rows.p.dim)),
        queries_((block + kMaxTileRows) * rows.p.dim),
        error_(block + kMaxTileRows),
        panel_(kMaxTileColumns * rows.p.dim),
        scratch_(kMaxTileColumns * rows.p.dim) {}

  int tile_rows() const { return rows_.prims.tile_rows; }
  int tile_columns() const { return rows_.prims.tile_columns; }
  int64_t large_norm_rows(int64_t group) const { return bank_.groups[static_cast<size_t>(group)].large_norms; }
  T error(int64_t q) const { return error_[q]; }
  T lowest_filter_score(int64_t, T) const { return -std::numeric_limits<T>::infinity(); }  // error() is tight enough

  void begin_group(int64_t group) { group_ = group; }
  void end_group() {}

  // A query with a NaN, of norm NaN, takes part as zeros.
  void set_query(int64_t q, const T* row, T norm) {
    const int64_t dim = rows_.p.dim, tile_rows = rows_.prims.tile_rows;
    T* out = queries_.get() + q / tile_rows * tile_rows * dim + q % tile_rows;
    for (int64_t d = 0; d < dim; ++d) out[d * tile_rows] = std::isnan(norm) ? T(0) : row[d];
    const T largest = bank_.groups[static_cast<size_t>(group_)].largest_norm;
    error_[q] = filter_bound(rows_.p.metric == Metric::l2, gamma_, underflow_, norm, largest);
  }

  void begin_panel(int64_t start, int64_t count) {
    const int64_t dim = rows_.p.dim;
    const T* row[kMaxTileColumns];
    for (int64_t c = 0; c < count; ++c) {
      T* scratch = scratch_.get() + c * dim;
      bias_[c] = bank_.groups[static_cast<size_t>(group_)].bias[start + c];
      row[c] = rows_.bank_row(group_, start + c, scratch);
      if (std::isinf(bias_[c])) {  // zeros, so that the row adds no infinity or NaN
        std::fill_n(scratch, dim, T(0));
        row[c] = scratch;
      }
    }
    std::fill(bias_ + count, bias_ + kMaxTileColumns, -std::numeric_limits<T>::infinity());
    pack_columns(row, count, dim, rows_.prims.tile_columns, panel_.get());
  }

  void score(int64_t tile, const T* threshold, T* scores, uint64_t* passes) const {
    rows_.prims.score_tile(queries_.get() + tile * rows_.p.dim, panel_.get(), bias_, rows_.p.dim, threshold, scores,
                           passes);
  }

 private:
  const KnnRows<T>& rows_;
  const FloatBank<T>& bank_;
  const T gamma_, underflow_;
  int64_t group_ = 0;
  Buffer<T> queries_, error_, panel_, scratch_;
  T bias_[kMaxTileColumns];
};

}  // namespace dgcl
