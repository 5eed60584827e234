#include "knn_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/parallel.h"
#include "../math/filter_bound.h"
#include "panel.h"

namespace dgcl {
namespace {

constexpr int64_t kBlockQueries = 384;       // a multiple of every level's tile_rows
constexpr int64_t kBlockBytes = 1 << 20;     // packed queries of one item
constexpr int64_t kSurvivorBytes = 4 << 20;  // survivor buffers of one item
constexpr int64_t kCopyBytes = 24 << 20;     // a bank up to this size is widened and normalized once, up front

struct Item {
  int64_t group, first, count;  // queries [first, first + count)
};

template <typename T>
bool comes_before(const Neighbour<T>& a, const Neighbour<T>& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}

template <typename T>
struct Layout {
  int rows, columns;  // of a tile
  int64_t block;      // queries per item
  int64_t capacity;   // survivors per query

  Layout(const KnnProblem& p, const Primitives<T>& prims) : rows(prims.tile_rows), columns(prims.tile_columns) {
    const int64_t k = std::max<int64_t>(1, std::min(p.k, p.bank_rows));
    capacity = std::max<int64_t>(k <= 256 ? 8 * k : 2 * k, k + 4 * columns);
    capacity = std::min(capacity, p.bank_rows + columns);
    const int64_t total = p.offsets.back() - p.offsets.front();
    block = std::min(kBlockQueries, (total + thread_count() - 1) / thread_count());
    block = std::min(block, kBlockBytes / (p.dim * static_cast<int64_t>(sizeof(T)) + 1));
    block = std::min(block, kSurvivorBytes / (capacity * static_cast<int64_t>(sizeof(T) + sizeof(int32_t))));
    block = std::max<int64_t>((block + rows - 1) / rows, 1) * rows;
  }
};

// One thread's search. Scores that only serve as the filter are called `filtered`.
template <typename T>
class Searcher {
 public:
  Searcher(const KnnProblem& problem, const Layout<T>& layout, const KnnEmit<T>& emit)
      : p_(problem),
        prims_(primitives<T>()),
        layout_(layout),
        emit_(emit),
        gamma_(filter_gamma<T>(problem.dim)),
        underflow_(filter_underflow<T>(problem.dim)),
        packed_queries_(layout.block * problem.dim),
        panel_(layout.columns * problem.dim),
        rows_(layout.columns * problem.dim),
        query_row_(problem.dim),
        bank_row_(problem.dim),
        filtered_(layout.block * layout.capacity),
        index_(layout.block * layout.capacity),
        count_(layout.block),
        kth_(layout.block),
        query_norm_(layout.block),
        query_square_(layout.block),
        is_nan_(layout.block),
        order_(layout.capacity),
        neighbours_(layout.capacity) {}

  void search(const Item& item) {
    item_ = item;
    begin_queries();
    const int64_t bank_rows = p_.counts[item.group];
    for (int64_t start = 0; start < bank_rows; start += layout_.columns) {
      const uint64_t valid = begin_panel(start, std::min<int64_t>(layout_.columns, bank_rows - start));
      for (int64_t tile = 0; tile < item.count; tile += layout_.rows) scan_tile(tile, start, valid);
    }
    for (int64_t q = 0; q < item.count; ++q) finish(q);
  }

 private:
  const KnnProblem& p_;
  const Primitives<T>& prims_;
  const Layout<T>& layout_;
  const KnnEmit<T>& emit_;
  const T gamma_, underflow_;
  Item item_{};
  Buffer<T> packed_queries_, panel_, rows_, query_row_, bank_row_;
  Buffer<T> filtered_;  // [block][capacity]
  Buffer<int32_t> index_;
  Buffer<int64_t> count_;
  Buffer<T> kth_, query_norm_, query_square_;
  Buffer<bool> is_nan_;
  Buffer<T> order_;
  Buffer<Neighbour<T>> neighbours_;
  T bank_norm_ = 0;  // largest over the panels seen by this item
  T bias_[kMaxTileColumns];
  T tile_scores_[kMaxTileRows * kMaxTileColumns];

  const T* load_query(int64_t q) {
    load_row(prims_, p_.queries.dtype, p_.queries.row(item_.first + q), p_.dim, query_row_.get());
    if (p_.metric == Metric::cosine) unit_row(prims_, query_row_.get(), p_.dim, query_row_.get());
    return query_row_.get();
  }

  // A bank row as T, normalized where the metric asks for it; in place where it is stored so.
  const T* bank_row(int64_t i, T* scratch) {
    const char* stored = p_.bank.row(i, item_.group);
    const bool normalize = p_.metric == Metric::cosine && !p_.unit_bank;
    const bool is_t = p_.bank.dtype == (sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
    if (is_t && !normalize) return reinterpret_cast<const T*>(stored);
    load_row(prims_, p_.bank.dtype, stored, p_.dim, scratch);
    if (normalize) unit_row(prims_, scratch, p_.dim, scratch);
    return scratch;
  }

  // An upper bound of |x| from the canonical <x, x>, safe where that sum left the normal range.
  T norm_bound(const T* x, T square) const {
    if (is_safe_square(square)) return std::sqrt(square) * T(1.001);
    T largest = 0;
    for (int64_t d = 0; d < p_.dim; ++d) largest = std::max(largest, std::fabs(x[d]));
    return largest * std::sqrt(static_cast<T>(p_.dim)) * T(1.001);
  }

  T bound(int64_t q) const {
    return filter_bound(p_.metric == Metric::l2, gamma_, underflow_, query_norm_[q], bank_norm_);
  }

  void begin_queries() {
    bank_norm_ = 0;
    const int64_t padded = (item_.count + layout_.rows - 1) / layout_.rows * layout_.rows;
    for (int64_t q = 0; q < padded; ++q) {
      T* packed = packed_queries_.get() + q / layout_.rows * layout_.rows * p_.dim + q % layout_.rows;
      const bool real = q < item_.count;
      const T* row = real ? load_query(q) : nullptr;
      const T square = real ? prims_.dot(row, row, p_.dim) : T(0);
      is_nan_[q] = std::isnan(square);
      const bool use = real && !is_nan_[q];
      for (int64_t d = 0; d < p_.dim; ++d) packed[d * layout_.rows] = use ? row[d] : T(0);
      count_[q] = 0;
      // A threshold of +infinity lets nothing of padding and NaN queries pass.
      kth_[q] = use ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::infinity();
      query_norm_[q] = use ? norm_bound(row, square) : T(0);
      query_square_[q] = square;
    }
  }

  // Packs bank rows [start, start + count) and returns the columns that can be neighbours.
  uint64_t begin_panel(int64_t start, int64_t count) {
    const T* rows[kMaxTileColumns];
    uint64_t valid = 0;
    for (int64_t c = 0; c < count; ++c) {
      T* scratch = rows_.get() + c * p_.dim;
      rows[c] = bank_row(start + c, scratch);
      const T square = prims_.dot(rows[c], rows[c], p_.dim);
      bias_[c] = 0;
      if (std::isnan(square)) {  // never a neighbour; zeros keep the tile's arithmetic plain
        std::fill_n(scratch, p_.dim, T(0));
        rows[c] = scratch;
        continue;
      }
      valid |= uint64_t(1) << c;
      if (p_.metric == Metric::l2) bias_[c] = -square / 2;
      bank_norm_ = std::max(bank_norm_, norm_bound(rows[c], square));
    }
    std::fill(bias_ + count, bias_ + layout_.columns, T(0));
    pack_columns(rows, count, p_.dim, layout_.columns, panel_.get());
    return valid;
  }

  void scan_tile(int64_t tile, int64_t start, uint64_t valid) {
    T threshold[kMaxTileRows];
    uint64_t passes[kMaxTileRows];
    for (int r = 0; r < layout_.rows; ++r) threshold[r] = kth_[tile + r] - 2 * bound(tile + r);
    prims_.score_tile(packed_queries_.get() + tile * p_.dim, panel_.get(), bias_, p_.dim, threshold, tile_scores_,
                      passes);
    for (int r = 0; r < layout_.rows; ++r) {
      uint64_t bits = passes[r] & valid;
      if (bits && tile + r < item_.count && !is_nan_[tile + r])
        keep(tile + r, start, bits, tile_scores_ + r * layout_.columns);
    }
  }

  void keep(int64_t q, int64_t start, uint64_t bits, const T* scores) {
    T* filtered = filtered_.get() + q * layout_.capacity;
    int32_t* index = index_.get() + q * layout_.capacity;
    const int64_t self = p_.exclude_self ? item_.first + q - p_.offsets[item_.group] : -1;
    int64_t n = count_[q];
    for (; bits; bits &= bits - 1) {
      const int c = __builtin_ctzll(bits);
      if (start + c == self) continue;
      T score = scores[c];
      if (!(std::fabs(score) <= std::numeric_limits<T>::max())) {
        // The filter overflowed: ask the score that decides. What is a neighbour is kept until the exact comparison.
        const T exact = canonical_score(load_query(q), start + c);
        if (!(exact > -std::numeric_limits<T>::infinity())) continue;
        score = std::numeric_limits<T>::infinity();
      }
      filtered[n] = score;
      index[n++] = static_cast<int32_t>(start + c);
    }
    count_[q] = n;
    if (n > layout_.capacity - layout_.columns && n > p_.k) raise_threshold(q);
  }

  // What a kept score says for a threshold. An overflowed one (+infinity) stands for any canonical score: it says
  // nothing.
  static T vouched(T score) {
    return score <= std::numeric_limits<T>::max() ? score : -std::numeric_limits<T>::infinity();
  }

  T canonical_score(const T* query, int64_t i) {
    const T* row = bank_row(i, bank_row_.get());
    return p_.metric == Metric::l2 ? -std::sqrt(prims_.squared_distance(query, row, p_.dim))
                                   : prims_.dot(query, row, p_.dim);
  }

  // Drops what cannot be among the k largest any more and returns the k-th largest filter score.
  T drop_hopeless(int64_t q) {
    T* filtered = filtered_.get() + q * layout_.capacity;
    int32_t* index = index_.get() + q * layout_.capacity;
    const int64_t n = count_[q];
    std::transform(filtered, filtered + n, order_.get(), vouched);
    std::nth_element(order_.get(), order_.get() + p_.k - 1, order_.get() + n, [](T a, T b) { return a > b; });
    const T kth = order_[p_.k - 1], cut = kth - 2 * bound(q);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      filtered[kept] = filtered[i];
      index[kept] = index[i];
      kept += !(filtered[i] < cut);
    }
    count_[q] = kept;
    return kth;
  }

  void raise_threshold(int64_t q) {
    kth_[q] = drop_hopeless(q);
    if (count_[q] <= p_.k + (layout_.capacity - p_.k) / 2) return;
    // Too many scores within the filter's error of each other (near-equal rows): settle them exactly, keep k.
    T* filtered = filtered_.get() + q * layout_.capacity;
    int32_t* index = index_.get() + q * layout_.capacity;
    const int64_t found = rank_exactly(q);
    T smallest = std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < found; ++i) {
      const T score = neighbours_[i].score;
      T value = p_.metric == Metric::l2 ? (query_square_[q] - score * score) / 2 : score;
      if (!(std::fabs(value) <= std::numeric_limits<T>::max())) value = std::numeric_limits<T>::infinity();
      filtered[i] = value;
      index[i] = neighbours_[i].index;
      smallest = std::min(smallest, vouched(value));
    }
    count_[q] = found;
    kth_[q] = found == p_.k ? smallest : -std::numeric_limits<T>::infinity();
  }

  // Canonical scores of all that is kept; the best k, sorted, in neighbours_.
  int64_t rank_exactly(int64_t q) {
    const T* query = load_query(q);
    const int32_t* index = index_.get() + q * layout_.capacity;
    int64_t n = 0;
    for (int64_t i = 0; i < count_[q]; ++i) {
      const T score = canonical_score(query, index[i]);
      if (score > -std::numeric_limits<T>::infinity()) neighbours_[n++] = {score, index[i]};
    }
    const int64_t found = std::min(n, p_.k);
    std::partial_sort(neighbours_.get(), neighbours_.get() + found, neighbours_.get() + n, comes_before<T>);
    return found;
  }

  void finish(int64_t q) {
    if (is_nan_[q]) return emit_(item_.first + q, nullptr, -1);
    if (count_[q] > p_.k) drop_hopeless(q);
    const int64_t found = rank_exactly(q);
    emit_(item_.first + q, neighbours_.get(), found);
  }
};

// A bank copied as unit rows of T (cosine) or widened to T.
template <typename T>
Buffer<T> copy_bank(KnnProblem& p) {
  const int64_t groups = static_cast<int64_t>(p.counts.size());
  const Primitives<T>& prims = primitives<T>();
  Buffer<T> copy(groups * p.bank_rows * p.dim);
  constexpr int64_t chunk = 64;
  const int64_t chunks = (p.bank_rows + chunk - 1) / chunk;
  run_queue(groups * chunks, [&](auto& next) {
    for (int64_t item; (item = next()) >= 0;) {
      const int64_t group = item / chunks, first = item % chunks * chunk;
      for (int64_t i = first; i < std::min(first + chunk, p.counts[group]); ++i) {
        T* out = copy.get() + (group * p.bank_rows + i) * p.dim;
        load_row(prims, p.bank.dtype, p.bank.row(i, group), p.dim, out);
        if (p.metric == Metric::cosine && !p.unit_bank) unit_row(prims, out, p.dim, out);
      }
    }
  });
  p.bank.data = reinterpret_cast<const char*>(copy.get());
  p.bank.row_bytes = p.dim * static_cast<int64_t>(sizeof(T));
  p.bank.group_bytes = p.bank_rows * p.bank.row_bytes;
  p.bank.dtype = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  p.unit_bank = true;
  return copy;
}

}  // namespace

template <typename T>
void knn_search(const KnnProblem& problem, const KnnEmit<T>& emit) {
  KnnProblem p = problem;
  const int64_t groups = static_cast<int64_t>(p.counts.size());
  const bool is_t = p.bank.dtype == (sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  const bool as_stored = is_t && (p.metric != Metric::cosine || p.unit_bank);
  Buffer<T> copy;
  const double bytes = static_cast<double>(groups) * p.bank_rows * p.dim * sizeof(T);  // may exceed int64
  if (!as_stored && bytes <= kCopyBytes) copy = copy_bank<T>(p);

  const Layout<T> layout(p, primitives<T>());
  std::vector<Item> items;
  for (int64_t c = 0; c < groups; ++c) {
    if (p.counts[c] == 0) continue;
    int64_t end = p.offsets[c + 1];
    if (p.exclude_self) end = std::min(end, p.offsets[c] + p.counts[c]);  // further queries are no bank rows
    for (int64_t first = p.offsets[c]; first < end; first += layout.block)
      items.push_back({c, first, std::min(layout.block, end - first)});
  }
  run_queue(static_cast<int64_t>(items.size()), [&](auto& next) {
    Searcher<T> searcher(p, layout, emit);
    for (int64_t i; (i = next()) >= 0;) searcher.search(items[i]);
  });
}

template void knn_search<float>(const KnnProblem&, const KnnEmit<float>&);
template void knn_search<double>(const KnnProblem&, const KnnEmit<double>&);

}  // namespace dgcl
