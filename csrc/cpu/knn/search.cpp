#include "search.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>

#include "../../common/parallel.h"
#include "block.h"
#include "exact.h"
#include "float_filter.h"
#include "int8_filter.h"

namespace dgcl {
namespace {

constexpr int64_t kBlockQueries = 504;        // enough that a bank row, loaded again, serves several queries
constexpr int64_t kBlockBytes = 1 << 20;      // query rows of a block
constexpr int64_t kCandidateBytes = 4 << 20;  // candidate buffers of a block
constexpr int64_t kCopyBytes = 12 << 20;      // a bank up to this size is widened and normalised once, up front
constexpr int64_t kPreparedBytes = 12 << 20;  // classes are prepared for the filter together, up to this size
constexpr int64_t kFewQueries = 32;           // per class: with fewer, a filter does not pay off

struct Item {
  int64_t group, first, count;  // queries [first, first + count)
};

template <typename T>
BlockSize block_size(const KnnProblem& p, int64_t whole_tiles) {
  const int64_t k = std::max<int64_t>(1, std::min(p.k, p.bank_rows));
  BlockSize size;
  size.candidates =
      std::min(k <= 256 ? std::max<int64_t>(8 * k, 1024) : std::max<int64_t>(4 * k, 2048), p.bank_rows + k);
  const int64_t total = p.offsets.back() - p.offsets.front();
  // Small enough to keep all threads busy to the end.
  size.queries = std::clamp<int64_t>(total / (8 * thread_count()), 48, kBlockQueries);
  size.queries = std::min(size.queries, kBlockBytes / (p.dim * static_cast<int64_t>(sizeof(T)) + 1));
  size.queries =
      std::min(size.queries, kCandidateBytes / (size.stride() * static_cast<int64_t>(sizeof(T) + sizeof(int32_t))));
  size.queries = std::max<int64_t>(size.queries / whole_tiles, 1) * whole_tiles;
  return size;
}

// Copies the bank as unit rows of T (cosine), or widened to T.
template <typename T>
Buffer<T> copy_bank(KnnProblem& p) {
  const int64_t groups = static_cast<int64_t>(p.counts.size());
  const KnnRows<T> rows(p);
  Buffer<T> copy(groups * p.bank_rows * p.dim);
  constexpr int64_t chunk = 64;
  const int64_t chunks = (p.bank_rows + chunk - 1) / chunk;
  run_queue(groups * chunks, [&](auto& next) {
    for (int64_t item; (item = next()) >= 0;) {
      const int64_t group = item / chunks, first = item % chunks * chunk;
      for (int64_t i = first; i < std::min(first + chunk, p.counts[group]); ++i)
        rows.bank_row(group, i, copy.get() + (group * p.bank_rows + i) * p.dim);
    }
  });
  p.bank.data = reinterpret_cast<const char*>(copy.get());
  p.bank.row_bytes = p.dim * static_cast<int64_t>(sizeof(T));
  p.bank.group_bytes = p.bank_rows * p.bank.row_bytes;
  p.bank.dtype = KnnRows<T>::kType;
  p.unit_bank = true;
  return copy;
}

// Searches the items with one scorer, then the queries it left unresolved without a filter.
template <typename T, typename Scorer, typename... Bank>
void search_items(const KnnRows<T>& rows, std::vector<Item>& items, BlockSize size, const KnnEmit<T>& emit,
                  const Bank&... bank) {
  // Longest items first, so that the threads finish together.
  const auto cost = [&](const Item& item) { return item.count * rows.p.counts[static_cast<size_t>(item.group)]; };
  std::stable_sort(items.begin(), items.end(), [&](const Item& a, const Item& b) { return cost(a) > cost(b); });
  // If a class leaves most of a block unresolved, its later blocks skip the filter.
  std::vector<std::atomic<bool>> skip_filter(rows.p.counts.size());
  run_queue(static_cast<int64_t>(items.size()), [&](auto& next) {
    BlockSearch<T, Scorer> block(rows, size, emit, bank...);
    std::unique_ptr<BlockSearch<T, ExactScorer<T>>> exact;
    std::vector<int64_t> queries, unresolved, none;
    for (int64_t i; (i = next()) >= 0;) {
      const Item& item = items[static_cast<size_t>(i)];
      queries.resize(static_cast<size_t>(item.count));
      std::iota(queries.begin(), queries.end(), item.first);
      std::atomic<bool>& skip = skip_filter[static_cast<size_t>(item.group)];
      unresolved.clear();
      if (skip.load(std::memory_order_relaxed))
        unresolved.swap(queries);
      else
        block.search(item.group, queries.data(), item.count, unresolved);
      if (unresolved.empty()) continue;
      if (2 * static_cast<int64_t>(unresolved.size()) > item.count) skip.store(true, std::memory_order_relaxed);
      if (!exact) exact = std::make_unique<BlockSearch<T, ExactScorer<T>>>(rows, size, emit);
      exact->search(item.group, unresolved.data(), static_cast<int64_t>(unresolved.size()), none);
    }
  });
}

}  // namespace

template <typename T>
void knn_search(const KnnProblem& problem, const KnnEmit<T>& emit) {
  KnnProblem p = problem;
  const int64_t groups = static_cast<int64_t>(p.counts.size());
  Buffer<T> copy;
  const double bytes = static_cast<double>(groups) * p.bank_rows * p.dim * sizeof(T);  // may exceed int64
  if (!KnnRows<T>::read_in_place(p) && bytes <= kCopyBytes) copy = copy_bank<T>(p);

  const bool in_int8 = sizeof(T) == sizeof(float) && int8_primitives() && p.dim <= kInt8MaxDim;
  // Multiples of the rows of a tile.
  const BlockSize size = block_size<T>(p, in_int8 && int8_primitives()->tile_rows == 16 ? 16 : 12);
  const bool filter = in_int8 || (primitives<T>().filter_pays && p.dim <= kMostBoundedColumns);
  const KnnRows<T> rows(p);
  std::vector<Item> exact, filtered;
  std::vector<int64_t> prepared;  // the classes in `filtered`
  int64_t bytes_prepared = 0;
  const auto search_filtered = [&] {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (in_int8) search_items<T, Int8Filter>(rows, filtered, size, emit, Int8Bank(rows, prepared));
    }
    if (!in_int8) search_items<T, FloatFilter<T>>(rows, filtered, size, emit, FloatBank<T>(rows, prepared));
    filtered.clear();
    prepared.clear();
    bytes_prepared = 0;
  };
  for (int64_t c = 0; c < groups; ++c) {
    if (p.counts[c] == 0) continue;
    int64_t end = p.offsets[c + 1];
    if (p.exclude_self) end = std::min(end, p.offsets[c] + p.counts[c]);  // later queries have no bank row
    if (end <= p.offsets[c]) continue;
    const bool few = !filter || end - p.offsets[c] <= kFewQueries || 2 * p.k > p.counts[c];
    for (int64_t first = p.offsets[c]; first < end; first += size.queries)
      (few ? exact : filtered).push_back({c, first, std::min(size.queries, end - first)});
    if (few) continue;
    prepared.push_back(c);
    bytes_prepared += (p.counts[c] + kPanelRows) * (p.dim + 16);
    if (bytes_prepared >= kPreparedBytes) search_filtered();
  }
  if (!filtered.empty()) search_filtered();
  if (!exact.empty()) search_items<T, ExactScorer<T>>(rows, exact, size, emit);
}

template void knn_search<float>(const KnnProblem&, const KnnEmit<float>&);
template void knn_search<double>(const KnnProblem&, const KnnEmit<double>&);

}  // namespace dgcl
