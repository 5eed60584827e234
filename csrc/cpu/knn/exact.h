// Scores every pair canonically. Used for few queries, and for queries that a filter cannot resolve.
#pragma once
#include "../../math/score.h"
#include "rows.h"

namespace dgcl {

template <typename T>
class ExactScorer {
 public:
  static constexpr bool kExact = true;
  static constexpr int kRows = 4;

  ExactScorer(const KnnRows<T>& rows, int64_t block)
      : rows_(rows), queries_(block + kRows), scratch_(kMaxTileColumns * rows.p.dim) {}

  int tile_rows() const { return kRows; }
  int tile_columns() const { return kMaxTileColumns; }
  int64_t large_norm_rows(int64_t) const { return 0; }
  void set_query(int64_t q, const T* row, T) { queries_[q] = row ? row : queries_[q - 1]; }
  void begin_group(int64_t group) { group_ = group; }
  void end_group() {}

  void begin_panel(int64_t start, int64_t count) {
    for (int64_t c = 0; c < count; ++c) bank_[c] = rows_.bank_row(group_, start + c, scratch_.get() + c * rows_.p.dim);
    for (int64_t c = count; c < kMaxTileColumns; ++c) bank_[c] = bank_[count - 1];
    count_ = count;
  }

  void score(int64_t tile, const T* threshold, T* scores, uint64_t* passes) const {
    const bool l2 = rows_.p.metric == Metric::l2;
    const auto pairs = l2 ? rows_.prims.squared_distance_4x4 : rows_.prims.dot_4x4;
    T block[kRows * kRows];
    for (int64_t c = 0; c < count_; c += kRows) {
      pairs(queries_.get() + tile, bank_ + c, rows_.p.dim, block);
      for (int r = 0; r < kRows; ++r)
        for (int i = 0; i < kRows; ++i) scores[r * kMaxTileColumns + c + i] = score_of_sum(l2, block[r * kRows + i]);
    }
    for (int r = 0; r < kRows; ++r) passes[r] = rows_.prims.passing(scores + r * kMaxTileColumns, count_, threshold[r]);
  }

 private:
  const KnnRows<T>& rows_;
  int64_t group_ = 0, count_ = 0;
  Buffer<const T*> queries_;
  Buffer<T> scratch_;
  const T* bank_[kMaxTileColumns];
};

}  // namespace dgcl
