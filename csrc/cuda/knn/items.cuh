// Which queries and bank rows a block works on. The host does not know the class sizes.
#pragma once
#include "../../math/score.h"
#include "../rows.cuh"
#include "search.h"

namespace dgcl {

__device__ __forceinline__ int64_t class_begin(const KnnSearchArguments& a, int64_t c) {
  if (!a.offsets) return c == 0 ? 0 : a.num_queries;
  return clamped(a.offsets[c], a.num_queries);
}

__device__ __forceinline__ int64_t class_rows(const KnnSearchArguments& a, int64_t c) {
  return a.counts ? clamped(a.counts[c], a.bank_rows) : a.bank_rows;
}

// Queries and bank rows of a class.
struct KnnClass {
  int64_t first_query, queries, rows;
};

__device__ inline KnnClass knn_class(const KnnSearchArguments& a, int64_t c) {
  const int64_t begin = class_begin(a, c), rows = class_rows(a, c);
  int64_t end = class_begin(a, c + 1);
  if (a.exclude_self && end > begin + rows) end = begin + rows;  // later queries have no bank row
  return {begin, rows > 0 && end > begin ? end - begin : 0, rows};
}

// Query tiles of class c start at number begin(c) / kItemQueries + c. That leaves at most one surplus tile per class, so
// no prefix sum is needed. Surplus tiles are empty.
__device__ __forceinline__ int64_t first_tile(const KnnClass& c, int64_t group) {
  return c.first_query / kItemQueries + group;
}

struct KnnItem {
  int64_t group;               // class
  int64_t first_query;         // queries [first_query, first_query + queries)
  int64_t first_place;         // position of the first query in its class
  int queries;                 // 0: no work
  int32_t begin_row, end_row;  // bank rows of this part
  int32_t split;
};

// The item of the exact kernel: a tile of queries and one of plan.splits equal parts of the bank.
__device__ inline KnnItem knn_item(const KnnSearchArguments& a, int64_t item) {
  const int64_t tile = item / a.plan.splits;
  const int64_t group = partition_point(
      a.num_classes - 1, [&](int64_t c) { return class_begin(a, c + 1) / kItemQueries + c + 1 <= tile; });
  KnnItem it;
  it.group = group;
  it.split = static_cast<int32_t>(item % a.plan.splits);
  const KnnClass c = knn_class(a, group);
  it.first_place = (tile - first_tile(c, group)) * kItemQueries;
  it.first_query = c.first_query + it.first_place;
  const int64_t left = it.first_place < 0 ? 0 : c.queries - it.first_place;
  it.queries = static_cast<int>(clamped(left, kItemQueries));
  const int64_t split_begin = it.split * a.plan.split_rows, split_end = split_begin + a.plan.split_rows;
  it.begin_row = static_cast<int32_t>(split_begin < c.rows ? split_begin : c.rows);
  it.end_row = static_cast<int32_t>(split_end < c.rows ? split_end : c.rows);
  return it;
}

// Walks over the bank rows of an item tile by tile, and over the columns of a tile chunk by chunk.
struct TileWalk {
  int32_t start;  // first row of the tile
  int chunk = 0;
  int tile_rows, chunks;

  __device__ TileWalk(int32_t first_row, int rows, int number) : start(first_row), tile_rows(rows), chunks(number) {}
  __device__ void advance() {
    if (++chunk < chunks) return;
    chunk = 0;
    start += tile_rows;
  }
};

// The elements of a query, widened, and of unit length for cosine.
template <typename T>
struct QueryReader {
  RowReader<T> raw;
  RowNorm<T> norm;
  bool normalize;

  __device__ QueryReader(const KnnSearchArguments& a, int64_t query, const RowNorm<T>& n)
      : raw(a.queries, query, 0), norm(n), normalize(a.normalize_queries) {}
  __device__ T operator()(int64_t d) const { return element_of_unit(raw(d), norm, normalize); }
};

template <typename T>
__device__ RowNorm<T> query_norm(const KnnSearchArguments& a, int64_t query) {
  if (!a.normalize_queries) return {1, 0};
  return warp_row_norm<T>(RowReader<T>(a.queries, query, 0), a.dim);
}

// The same for bank row i of a class.
template <typename T>
struct BankReader {
  RowReader<T> raw;
  RowNorm<T> norm;
  bool normalize;

  __device__ BankReader(const KnnSearchArguments& a, int64_t i, int64_t group)
      : raw(a.bank, i, group), norm{1, 0}, normalize(a.normalize_bank) {
    if (normalize) norm = static_cast<const RowNorm<T>*>(a.bank_norms)[group * a.bank_rows + i];
  }
  __device__ T operator()(int64_t d) const { return element_of_unit(raw(d), norm, normalize); }
};

// One step of the canonical sum of a pair.
template <typename T>
__device__ __forceinline__ T score_step(bool l2, T x, T y, T sum) {
  if (!l2) return fma(x, y, sum);
  const T difference = x - y;
  return fma(difference, difference, sum);
}

}  // namespace dgcl
