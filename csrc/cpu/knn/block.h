// One thread's search for a block of queries of one class. The class's bank goes by in panels; the scorer's tiles give
// scores; those that reach the query's threshold are kept in a small buffer per query, and when that fills the threshold
// rises. What a filter kept at the end gets its canonical score, bank row by bank row, so that a row is near for all
// queries that ask for it.
#pragma once
#include <vector>

#include "../../math/score.h"
#include "rows.h"

namespace dgcl {

struct BlockSize {
  int64_t queries;    // of one block
  int64_t survivors;  // kept per query before the threshold rises, at most
  int64_t stride() const { return survivors + kMaxTileColumns + kMaxWidth; }  // what the leaf functions may touch
};

template <typename T, typename Scorer>
class BlockSearch {
 public:
  // `bank` is what the scorer keeps of it, if anything.
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
        first_(size.queries),
        from_(size.queries),
        threshold_(size.queries + kMaxTileRows),
        order_(size.stride()),
        order_index_(size.stride()),
        neighbours_(size.stride()),
        scratch_(rows.p.dim) {}

  // Emits `count` queries, at most size.queries, of one class, but appends to `unsettled` those that a filter gives up.
  void search(int64_t group, const int64_t* queries, int64_t count, std::vector<int64_t>& unsettled) {
    group_ = group;
    queries_ = queries;
    count_ = count;
    spare_ = scorer_.loud_rows(group);
    begin_queries(unsettled);
    const int64_t bank_rows = rows_.p.counts[static_cast<size_t>(group)];
    for (int64_t start = 0; start < bank_rows && active_ > 0; start += scorer_.tile_columns()) {
      const int64_t columns = std::min<int64_t>(scorer_.tile_columns(), bank_rows - start);
      scorer_.begin_panel(start, columns);
      for (int64_t c = 0; c < kMaxTileColumns; ++c) panel_index_[c] = static_cast<int32_t>(start + c);
      for (int64_t tile = 0; tile < count; tile += scorer_.tile_rows()) scan_tile(tile, start, unsettled);
    }
    finish();
  }

 private:
  static constexpr T kLowest = std::numeric_limits<T>::lowest();    // below it are only scores of no neighbour
  static constexpr T kNever = std::numeric_limits<T>::quiet_NaN();  // a threshold that nothing reaches

  struct Pair {
    int32_t query, entry;  // of those that the query kept
  };

  const KnnRows<T>& rows_;
  Scorer scorer_;
  const BlockSize size_;
  const KnnEmit<T>& emit_;
  int64_t group_ = 0, count_ = 0, active_ = 0;
  int64_t spare_ = 0;  // scores of +infinity that vouch for nothing
  const int64_t* queries_ = nullptr;
  Buffer<T> row_;    // [queries][dim], as the canonical score wants them
  Buffer<T> score_;  // [queries][stride]
  Buffer<int32_t> index_;
  Buffer<int64_t> kept_, limit_;
  Buffer<int64_t> first_;  // of the entries kept: how many come first,
  Buffer<int64_t> from_;   // and from which one on scores are not canonical
  Buffer<T> threshold_;
  Buffer<T> order_;
  Buffer<int32_t> order_index_;
  Buffer<Neighbour<T>> neighbours_;
  Buffer<T> scratch_;
  std::vector<Pair> pairs_;
  int32_t panel_index_[kMaxTileColumns];
  T tile_scores_[kMaxTileRows * kMaxTileColumns];

  T* scores(int64_t q) { return score_.get() + q * size_.stride(); }
  int32_t* indices(int64_t q) { return index_.get() + q * size_.stride(); }
  const T* row(int64_t q) const { return row_.get() + q * rows_.p.dim; }
  int64_t k() const { return rows_.p.k; }

  void begin_queries(std::vector<int64_t>& unsettled) {
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
      } else if (!Scorer::kExact && KnnRows<T>::is_loud(norm)) {
        use = false;
        norm = kNever;
        unsettled.push_back(queries_[q]);
      }
      scorer_.set_query(q, to, norm);
      kept_[q] = use ? 0 : -1;
      threshold_[q] = use ? kLowest : kNever;
      limit_[q] = next_limit(k() + spare_);
      active_ += use;
    }
    for (int64_t q = count_; q % scorer_.tile_rows() != 0; ++q) {  // what fills up the last tile
      scorer_.set_query(q, nullptr, kNever);
      threshold_[q] = kNever;
    }
  }

  // How many to keep before the threshold rises, if `kept` are left after the last time.
  int64_t next_limit(int64_t kept) const { return std::min(size_.survivors, kept + std::max<int64_t>(kept, 64)); }

  void scan_tile(int64_t tile, int64_t start, std::vector<int64_t>& unsettled) {
    uint64_t passes[kMaxTileRows];
    scorer_.score(tile, threshold_.get() + tile, tile_scores_, passes);
    const int64_t end = std::min<int64_t>(scorer_.tile_rows(), count_ - tile);
    for (int64_t r = 0; r < end; ++r)
      if (passes[r]) keep(tile + r, start, passes[r], tile_scores_ + r * scorer_.tile_columns(), unsettled);
  }

  void keep(int64_t q, int64_t start, uint64_t bits, const T* tile_row, std::vector<int64_t>& unsettled) {
    if (rows_.p.exclude_self) {
      const int64_t self = queries_[q] - rows_.p.offsets[static_cast<size_t>(group_)] - start;
      if (self >= 0 && self < kMaxTileColumns) bits &= ~(uint64_t(1) << self);
    }
    const int64_t n = kept_[q];
    kept_[q] = n + rows_.prims.append(tile_row, panel_index_, bits, scores(q) + n, indices(q) + n);
    if (kept_[q] < limit_[q]) return;
    if constexpr (Scorer::kExact) {
      cut_exactly(q);
    } else {
      raise_threshold(q, (k() + spare_) * 9 / 8);
      if (kept_[q] > size_.survivors / 4 * 3) {
        unsettled.push_back(queries_[q]);
        threshold_[q] = kNever;
        kept_[q] = -1;
        --active_;
      }
    }
  }

  // Drops what cannot be among the k best any more, and returns a filter score that `k` rows reach; about k if `most` is.
  // Of a row's filter score s the canonical score is within the error e: a row below s_(k) - 2 e has k rows with a
  // higher one. An error that is no number drops nothing.
  T raise_threshold(int64_t q, int64_t most) {
    const int64_t rank = k() + spare_;
    if (kept_[q] <= rank) return kLowest;
    const T kth = rows_.prims.reached_by(scores(q), kept_[q], rank, std::max(rank, most));
    threshold_[q] = std::max(kLowest, kth - 2 * scorer_.error(q));
    kept_[q] = rows_.prims.drop_below(scores(q), indices(q), kept_[q], threshold_[q]);
    limit_[q] = next_limit(kept_[q]);
    return kth;
  }

  // Of final scores: keeps the k best, of equal ones the first. Only a higher score than the last of them can follow.
  void cut_exactly(int64_t q) {
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
    if constexpr (!Scorer::kExact) settle();
    for (int64_t q = 0; q < count_; ++q) {
      const int64_t n = kept_[q];
      if (n < 0) continue;
      for (int64_t i = 0; i < n; ++i) neighbours_[i] = {scores(q)[i], indices(q)[i]};
      const int64_t found = std::min(n, k());
      std::partial_sort(neighbours_.get(), neighbours_.get() + found, neighbours_.get() + n,
                        [](const auto& a, const auto& b) { return comes_before(a.score, a.index, b.score, b.index); });
      emit_(queries_[q], neighbours_.get(), found);
    }
  }

  // Canonical scores of what the filter kept: first of the k that it puts first. The last of these then says, with one
  // error instead of two, which others can still be neighbours.
  void settle() {
    for (int64_t q = 0; q < count_; ++q) put_first(q, raise_threshold(q, 0));
    std::fill_n(from_.get(), count_, int64_t(0));
    score_survivors(first_.get());
    for (int64_t q = 0; q < count_; ++q) {
      const int64_t n = first_[q];
      if (kept_[q] > n) {
        const T reached = rows_.prims.reached_by(scores(q), n, k(), k());
        kept_[q] = n + rows_.prims.drop_below(scores(q) + n, indices(q) + n, kept_[q] - n,
                                              std::max(kLowest, scorer_.least(q, reached)));
      }
    }
    score_survivors(kept_.get());
    for (int64_t q = 0; q < count_; ++q) {
      if (kept_[q] < 0) continue;
      T cut = kLowest;
      if (kept_[q] > k()) cut = std::max(cut, rows_.prims.reached_by(scores(q), kept_[q], k(), k() + k() / 8));
      kept_[q] = rows_.prims.drop_below(scores(q), indices(q), kept_[q], cut);
    }
  }

  // Moves the rows of at least this score to the front, both parts in their order. All of them, if there are not k.
  void put_first(int64_t q, T least) {
    T* score = scores(q);
    int32_t* index = indices(q);
    const int64_t n = std::max<int64_t>(kept_[q], 0);
    first_[q] = n;
    if (n <= k() + spare_) return;
    int64_t front = 0, back = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool is_first = score[i] >= least;
      order_[back] = score[i];
      order_index_[back] = index[i];
      score[front] = score[i];
      index[front] = index[i];
      front += is_first;
      back += !is_first;
    }
    std::copy_n(order_.get(), back, score + front);
    std::copy_n(order_index_.get(), back, index + front);
    first_[q] = front;
  }

  // Canonical scores in place of the filter's, of entries [from, to) of each query, and moves `from` to `to`. In the
  // order of the bank rows: those of a window are sorted by counting, each then serves all queries that kept it. A NaN
  // becomes -infinity, which is no neighbour's either.
  void score_survivors(const int64_t* to) {
    constexpr int64_t kWindow = 2048;
    int32_t begin[kWindow + 1];
    const int64_t bank_rows = rows_.p.counts[static_cast<size_t>(group_)];
    for (int64_t first = 0; first < bank_rows; first += kWindow) {
      const int64_t end = std::min(first + kWindow, bank_rows);
      std::fill_n(begin, end - first + 1, 0);
      for (int64_t q = 0; q < count_; ++q)
        for (int64_t i = from_[q]; i < to[q] && indices(q)[i] < end; ++i) ++begin[indices(q)[i] - first + 1];
      for (int64_t i = 0; i < end - first; ++i) begin[i + 1] += begin[i];
      const int64_t total = begin[end - first];
      if (static_cast<int64_t>(pairs_.size()) < total) pairs_.resize(static_cast<size_t>(total));
      for (int64_t q = 0; q < count_; ++q) {
        int64_t i = from_[q];
        for (; i < to[q] && indices(q)[i] < end; ++i)
          pairs_[static_cast<size_t>(begin[indices(q)[i] - first]++)] = {static_cast<int32_t>(q),
                                                                         static_cast<int32_t>(i)};
        from_[q] = i;
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
