// One thread's search for a block of queries of one class. The bank is read in panels, and the scorer scores tiles.
// Scores that reach a query's threshold go to a small buffer per query; when it fills, the threshold rises. In the end,
// what a filter has kept gets canonical scores. This goes bank row by bank row, so that a row is loaded once for all
// queries that kept it.
#pragma once
#include <vector>

#include "../../math/score.h"
#include "order.h"
#include "rows.h"

namespace dgcl {

struct BlockSize {
  int64_t queries;     // in a block
  int64_t candidates;  // per query, at most, before the threshold rises
  // The leaf functions write beyond the candidates.
  int64_t stride() const { return candidates + kMaxTileColumns + kMaxWidth; }
};

template <typename T, typename Scorer>
class BlockSearch {
 public:
  // `bank` is the scorer's copy of the bank, if it has one.
  template <typename... Bank>
  BlockSearch(const KnnRows<T>& rows, BlockSize size, const KnnEmit<T>& emit, const Bank&... bank)
      : rows_(rows),
        scorer_(rows, bank..., size.queries),
        size_(size),
        emit_(emit),
        row_(size.queries * rows.p.dim),
        score_(size.queries * size.stride()),
        index_(size.queries * size.stride()),
        kept_(size.queries),
        limit_(size.queries),
        front_(size.queries),
        rescored_(size.queries),
        threshold_(size.queries + kMaxTileRows),
        order_(size.stride()),
        order_index_(size.stride()),
        neighbours_(size.stride()),
        scratch_(rows.p.dim) {}

  // Emits the results of `count` queries of one class, at most size.queries. Queries that the filter cannot resolve go
  // to `unresolved` instead.
  void search(int64_t group, const int64_t* queries, int64_t count, std::vector<int64_t>& unresolved) {
    group_ = group;
    queries_ = queries;
    count_ = count;
    unbounded_ = scorer_.large_norm_rows(group);
    begin_queries(unresolved);
    const int64_t bank_rows = rows_.p.counts[static_cast<size_t>(group)];
    for (int64_t start = 0; start < bank_rows && active_ > 0; start += scorer_.tile_columns()) {
      const int64_t columns = std::min<int64_t>(scorer_.tile_columns(), bank_rows - start);
      scorer_.begin_panel(start, columns);
      for (int64_t c = 0; c < kMaxTileColumns; ++c) panel_index_[c] = static_cast<int32_t>(start + c);
      for (int64_t tile = 0; tile < count; tile += scorer_.tile_rows()) scan_tile(tile, start, unresolved);
    }
    scorer_.end_group();
    finish();
  }

 private:
  static constexpr T kLowest = std::numeric_limits<T>::lowest();    // lower scores are not neighbours
  static constexpr T kNever = std::numeric_limits<T>::quiet_NaN();  // no score reaches this threshold

  struct Pair {
    int32_t query, entry;  // entry: number among the query's candidates
  };

  const KnnRows<T>& rows_;
  Scorer scorer_;
  const BlockSize size_;
  const KnnEmit<T>& emit_;
  int64_t group_ = 0, count_ = 0, active_ = 0;
  // Rows with score +infinity because the filter cannot bound them. They say nothing about the k-th score.
  int64_t unbounded_ = 0;
  const int64_t* queries_ = nullptr;
  Buffer<T> row_;    // [queries][dim], for canonical scores
  Buffer<T> score_;  // [queries][stride]
  Buffer<int32_t> index_;
  Buffer<int64_t> kept_, limit_;
  Buffer<int64_t> front_;     // number of best entries, moved to the front
  Buffer<int64_t> rescored_;  // number of entries with canonical scores
  Buffer<T> threshold_;
  Buffer<T> order_;
  Buffer<int32_t> order_index_;
  Buffer<Neighbour<T>> neighbours_;
  Buffer<T> scratch_;
  std::vector<Pair> pairs_;
  int32_t panel_index_[kMaxTileColumns];
  alignas(64) T tile_scores_[kMaxTileRows * kMaxTileColumns];

  T* scores(int64_t q) { return score_.get() + q * size_.stride(); }
  int32_t* indices(int64_t q) { return index_.get() + q * size_.stride(); }
  const T* row(int64_t q) const { return row_.get() + q * rows_.p.dim; }
  int64_t k() const { return rows_.p.k; }

  void begin_queries(std::vector<int64_t>& unresolved) {
    active_ = 0;
    scorer_.begin_group(group_);
    for (int64_t q = 0; q < count_; ++q) {
      T* to = row_.get() + q * rows_.p.dim;
      rows_.load_query(queries_[q], to);
      const T square = rows_.prims.dot(to, to, rows_.p.dim);
      T norm = rows_.norm_bound(to, square);
      bool use = !std::isnan(square);
      if (!use) {
        norm = kNever;
        emit_(queries_[q], nullptr, -1);
      } else if (!Scorer::kExact && KnnRows<T>::has_large_norm(norm)) {
        use = false;
        norm = kNever;
        unresolved.push_back(queries_[q]);
      }
      scorer_.set_query(q, to, norm);
      kept_[q] = use ? 0 : -1;
      threshold_[q] = use ? kLowest : kNever;
      limit_[q] = next_limit(k() + unbounded_);
      active_ += use;
    }
    for (int64_t q = count_; q % scorer_.tile_rows() != 0; ++q) {  // fills up the last tile
      scorer_.set_query(q, nullptr, kNever);
      threshold_[q] = kNever;
    }
  }

  // The number of entries at which the threshold rises next, if `kept` are left now.
  int64_t next_limit(int64_t kept) const { return std::min(size_.candidates, kept + std::max<int64_t>(kept, 64)); }

  void scan_tile(int64_t tile, int64_t start, std::vector<int64_t>& unresolved) {
    uint64_t passes[kMaxTileRows];
    scorer_.score(tile, threshold_.get() + tile, tile_scores_, passes);
    const int64_t end = std::min<int64_t>(scorer_.tile_rows(), count_ - tile);
    for (int64_t r = 0; r < end; ++r)
      if (passes[r]) keep(tile + r, start, passes[r], tile_scores_ + r * scorer_.tile_columns(), unresolved);
  }

  void keep(int64_t q, int64_t start, uint64_t bits, const T* tile_row, std::vector<int64_t>& unresolved) {
    if (rows_.p.exclude_self) {
      const int64_t self = queries_[q] - rows_.p.offsets[static_cast<size_t>(group_)] - start;
      if (self >= 0 && self < kMaxTileColumns) bits &= ~(uint64_t(1) << self);
    }
    const int64_t n = kept_[q];
    kept_[q] = n + rows_.prims.append(tile_row, panel_index_, bits, scores(q) + n, indices(q) + n);
    if (kept_[q] < limit_[q]) return;
    if constexpr (Scorer::kExact) {
      keep_best(q);
    } else {
      raise_threshold(q);
      if (kept_[q] > size_.candidates / 4 * 3) {
        unresolved.push_back(queries_[q]);
        threshold_[q] = kNever;
        kept_[q] = -1;
        --active_;
      }
    }
  }

  // Drops entries that cannot be among the k best, and returns a filter score that k rows reach, and few more. A filter
  // score s and its canonical score differ by at most the error e. So a row below s_(k) - 2 e has k rows with a higher
  // score. A NaN error drops nothing.
  T raise_threshold(int64_t q) {
    const int64_t rank = k() + unbounded_;
    if (kept_[q] <= rank) return kLowest;
    const T kth = rows_.prims.reached_by(scores(q), kept_[q], rank, rank * 9 / 8);
    threshold_[q] = std::max(kLowest, kth - 2 * scorer_.error(q));
    kept_[q] = rows_.prims.drop_below(scores(q), indices(q), kept_[q], threshold_[q]);
    limit_[q] = next_limit(kept_[q]);
    return kth;
  }

  // For final scores: keeps the k best; ties go to the earlier entry. From then on only scores above the k-th can
  // enter.
  void keep_best(int64_t q) {
    T* score = scores(q);
    int32_t* index = indices(q);
    const int64_t n = kept_[q];
    if (n < k()) return;
    std::copy_n(score, n, order_.get());
    std::nth_element(order_.get(), order_.get() + k() - 1, order_.get() + n, std::greater<T>());
    const T kth = order_[k() - 1];
    int64_t equal = k(), kept = 0;
    for (int64_t i = 0; i < n; ++i) equal -= score[i] > kth;
    for (int64_t i = 0; i < n; ++i) {
      if (score[i] < kth || (score[i] == kth && equal-- <= 0)) continue;
      score[kept] = score[i];
      index[kept++] = index[i];
    }
    kept_[q] = kept;
    threshold_[q] = std::nextafter(kth, std::numeric_limits<T>::infinity());
    limit_[q] = next_limit(kept);
  }

  void finish() {
    if constexpr (!Scorer::kExact) rescore();
    for (int64_t q = 0; q < count_; ++q) {
      const int64_t n = kept_[q];
      if (n < 0) continue;
      const int64_t count = std::min(n, k());
      sort_best(rows_.prims, scores(q), indices(q), n, count, neighbours_.get());
      emit_(queries_[q], neighbours_.get(), count);
    }
  }

  // Gives canonical scores to what the filter kept, first to the k or more with the best filter scores. The k-th of
  // these says, with one error instead of two, which others can still be neighbours.
  void rescore() {
    for (int64_t q = 0; q < count_; ++q) move_best_to_front(q, raise_threshold(q));
    std::fill_n(rescored_.get(), count_, int64_t(0));
    rescore_entries(front_.get());
    for (int64_t q = 0; q < count_; ++q) {
      const int64_t n = front_[q];
      if (kept_[q] > n) {
        const T reached = rows_.prims.reached_by(scores(q), n, k(), k());
        kept_[q] = n + rows_.prims.drop_below(scores(q) + n, indices(q) + n, kept_[q] - n,
                                              std::max(kLowest, scorer_.lowest_filter_score(q, reached)));
      }
    }
    rescore_entries(kept_.get());
    for (int64_t q = 0; q < count_; ++q) {
      if (kept_[q] < 0) continue;
      T cut = kLowest;
      if (kept_[q] > k()) cut = std::max(cut, rows_.prims.reached_by(scores(q), kept_[q], k(), k() + k() / 8));
      kept_[q] = rows_.prims.drop_below(scores(q), indices(q), kept_[q], cut);
    }
  }

  // Moves entries with at least this score to the front and keeps the order of both parts. Moves nothing if at most k
  // entries are left.
  void move_best_to_front(int64_t q, T least) {
    T* score = scores(q);
    int32_t* index = indices(q);
    const int64_t n = std::max<int64_t>(kept_[q], 0);
    front_[q] = n;
    if (n <= k() + unbounded_) return;
    int64_t front = 0, back = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool in_front = score[i] >= least;
      order_[back] = score[i];
      order_index_[back] = index[i];
      score[front] = score[i];
      index[front] = index[i];
      front += in_front;
      back += !in_front;
    }
    std::copy_n(order_.get(), back, score + front);
    std::copy_n(order_index_.get(), back, index + front);
    front_[q] = front;
  }

  // Replaces filter scores with canonical ones, for entries [rescored_, to) of each query, and sets rescored_ to `to`.
  // Works in windows of bank rows: the pairs of a window are sorted by row, so that one load serves all queries that
  // kept the row. A NaN becomes -infinity, which is never a neighbour.
  void rescore_entries(const int64_t* to) {
    constexpr int64_t kWindow = 2048;
    int32_t begin[kWindow + 1];
    const int64_t bank_rows = rows_.p.counts[static_cast<size_t>(group_)];
    for (int64_t first = 0; first < bank_rows; first += kWindow) {
      const int64_t end = std::min(first + kWindow, bank_rows);
      std::fill_n(begin, end - first + 1, 0);
      for (int64_t q = 0; q < count_; ++q)
        for (int64_t i = rescored_[q]; i < to[q] && indices(q)[i] < end; ++i) ++begin[indices(q)[i] - first + 1];
      for (int64_t i = 0; i < end - first; ++i) begin[i + 1] += begin[i];
      const int64_t total = begin[end - first];
      if (static_cast<int64_t>(pairs_.size()) < total) pairs_.resize(static_cast<size_t>(total));
      for (int64_t q = 0; q < count_; ++q) {
        int64_t i = rescored_[q];
        for (; i < to[q] && indices(q)[i] < end; ++i)
          pairs_[static_cast<size_t>(begin[indices(q)[i] - first]++)] = {static_cast<int32_t>(q),
                                                                         static_cast<int32_t>(i)};
        rescored_[q] = i;
      }
      for (int64_t i = 0, at = 0; i < end - first; at = begin[i], ++i)
        if (begin[i] > at) score_row(first + i, pairs_.data() + at, begin[i] - at);
    }
  }

  void score_row(int64_t bank_row, const Pair* pairs, int64_t count) {
    const T* bank = rows_.bank_row(group_, bank_row, scratch_.get());
    const bool l2 = rows_.p.metric == Metric::l2;
    const auto four = l2 ? rows_.prims.squared_distance_4x1 : rows_.prims.dot_4x1;
    for (int64_t i = 0; i < count; i += 4) {
      const T* query[4];
      T out[4];
      for (int64_t j = 0; j < 4; ++j) query[j] = row(pairs[std::min(i + j, count - 1)].query);
      four(query, &bank, rows_.p.dim, out);
      for (int64_t j = 0; j < std::min<int64_t>(4, count - i); ++j) {
        const T score = score_of_sum(l2, out[j]);
        scores(pairs[i + j].query)[pairs[i + j].entry] =
            std::isnan(score) ? -std::numeric_limits<T>::infinity() : score;
      }
    }
  }
};

}  // namespace dgcl
