// Sums of distances by class. Squared distances come from differences in float64, followed by IEEE square roots and
// sums in a fixed order. The bits are the same for every number of threads and every instruction set.
//
// A squared distance is a sum over stretches of kDepth columns. Each stretch is a sum in increasing order
// (simd/distance_tile.h). Cancellation occurs only in the differences, which come first and have relative error u =
// 2^-53. (They are exact for inputs of at most 32 bits whose exponents are less than 30 apart.) All terms are positive,
// so the squared distance has relative error at most (2 + kDepth + D / kDepth) u to first order: 1.5e-14 for D = 256.
//
// Only kDepth columns of two blocks are widened at a time. Scratch memory is about 1 MB per thread, whatever N and D.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "../common/counts.h"
#include "../common/parallel.h"
#include "../ops/checks.h"
#include "panel.h"
#include "rows.h"

namespace dgcl {
namespace {

constexpr int64_t kMostRows = 256;     // in a block
constexpr int64_t kFewestBlocks = 32;  // if there are enough rows: work for that many threads
constexpr int64_t kDepth = 128;        // columns widened at a time: 16 KB of a panel
constexpr int64_t kTile = kDistanceRows * kDistanceRows;

struct Scratch {
  Buffer<double> left, right, tiles;
  Buffer<float> rows, panel;  // before a panel is widened
  Scratch(int64_t left_size, int64_t right_size)
      : left(left_size * kDepth),
        right(right_size * kDepth),
        tiles(left_size * right_size),
        rows(kDistanceRows * kDepth),
        panel(kDistanceRows * kDepth) {}
  double* tile(int64_t p, int64_t q, int64_t right_panels) const {
    return tiles.get() + (p * right_panels + q) * kTile;
  }
};

template <typename T>
void pack(const char* const* rows, int64_t count, int64_t depth, T* out) {
  const T* typed[kDistanceRows];
  for (int64_t i = 0; i < count; ++i) typed[i] = reinterpret_cast<const T*>(rows[i]);
  pack_columns(typed, count, depth, kDistanceRows, out);
}

// Rows [begin, end) of one panel, all of class `group`, or of none (-1).
struct Segment {
  int64_t begin, end, group;
};

// A matrix cut into panels of 16 rows. Panels are cut into segments, and grouped into blocks.
class Blocks {
 public:
  Blocks(const Tensor& matrix, const std::vector<int64_t>& offsets) : rows_(matrix.size(0)) {
    source_ = row_source(matrix, keep_);
    element_bytes_ = static_cast<int64_t>(matrix.element_size());
    const int64_t wanted = (rows_ / kFewestBlocks + kDistanceRows - 1) / kDistanceRows * kDistanceRows;
    size_ = std::clamp<int64_t>(wanted, kDistanceRows, kMostRows);
    const int64_t classes = static_cast<int64_t>(offsets.size()) - 1;
    int64_t c = -1;  // the class of the next row
    for (int64_t row = 0; row < rows_;) {
      if (row % kDistanceRows == 0) first_.push_back(segments_.size());
      while (c < classes && offsets[static_cast<size_t>(c + 1)] <= row) ++c;
      int64_t end = std::min(rows_, (row / kDistanceRows + 1) * kDistanceRows);
      if (c < classes) end = std::min(end, offsets[static_cast<size_t>(c + 1)]);
      segments_.push_back({row, end, c < classes ? c : -1});
      row = end;
    }
    first_.push_back(segments_.size());
  }

  int64_t size() const { return size_; }
  int64_t count() const { return (rows_ + size_ - 1) / size_; }
  int64_t panels_begin(int64_t block) const { return block * size_ / kDistanceRows; }
  int64_t panels_end(int64_t block) const {
    return (std::min(rows_, (block + 1) * size_) + kDistanceRows - 1) / kDistanceRows;
  }
  int64_t panel_rows(int64_t panel) const { return std::min<int64_t>(kDistanceRows, rows_ - panel * kDistanceRows); }
  const Segment* segments_begin(int64_t panel) const { return segments_.data() + first_[static_cast<size_t>(panel)]; }
  const Segment* segments_end(int64_t panel) const { return segments_begin(panel + 1); }

  // Columns [column, column + depth) of the block's rows, widened. Panels [depth, 16] follow one another.
  void load(int64_t block, int64_t column, int64_t depth, const Scratch& scratch, double* out) const {
    for (int64_t panel = panels_begin(block); panel < panels_end(block); ++panel, out += depth * kDistanceRows) {
      const char* rows[kDistanceRows];
      for (int64_t i = 0; i < panel_rows(panel); ++i)
        rows[i] = source_.row(panel * kDistanceRows + i) + column * element_bytes_;
      if (source_.dtype == ScalarType::Double) {
        pack(rows, panel_rows(panel), depth, out);
        continue;
      }
      if (source_.dtype != ScalarType::Float)
        for (int64_t i = 0; i < panel_rows(panel); ++i) {
          float* row = scratch.rows.get() + i * depth;
          load_row(primitives<float>(), source_.dtype, rows[i], depth, row);
          rows[i] = reinterpret_cast<const char*>(row);
        }
      pack(rows, panel_rows(panel), depth, scratch.panel.get());
      std::copy_n(scratch.panel.get(), depth * kDistanceRows, out);
    }
  }

 private:
  Tensor keep_;
  RowSource source_;
  int64_t rows_, size_, element_bytes_;
  std::vector<Segment> segments_;
  std::vector<size_t> first_;
};

// x[0] + ... + x[count - 1]. A whole row of a tile is summed as a tree.
double sum_of(const double* x, int64_t count) {
  if (count < kDistanceRows) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += x[i];
    return sum;
  }
  double half[kDistanceRows / 2];
  for (int i = 0; i < 8; ++i) half[i] = x[i] + x[i + 8];
  for (int i = 0; i < 4; ++i) half[i] = half[i] + half[i + 4];
  return (half[0] + half[2]) + (half[1] + half[3]);
}

// Adds the distances of a tile to the sums [rows, groups] of the left panel's rows, by class of the right rows. Unless
// both panels are the `same`, it also adds them to the sums of the right panel's rows, by class of the left rows.
void add_tile(const double* tile, const Blocks& left, int64_t P, const Blocks& right, int64_t Q, bool same,
              int64_t groups, double* sums) {
  const int64_t left_begin = P * kDistanceRows, right_begin = Q * kDistanceRows;
  for (const Segment* a = left.segments_begin(P); a != left.segments_end(P); ++a) {
    for (const Segment* b = right.segments_begin(Q); b != right.segments_end(Q); ++b)
      if (b->group >= 0)
        for (int64_t i = a->begin; i < a->end; ++i)
          sums[i * groups + b->group] +=
              sum_of(tile + (i - left_begin) * kDistanceRows + (b->begin - right_begin), b->end - b->begin);
    if (same || a->group < 0) continue;
    double to_right[kDistanceRows] = {};
    for (int64_t i = a->begin; i < a->end; ++i)
      for (int64_t j = 0; j < kDistanceRows; ++j) to_right[j] += tile[(i - left_begin) * kDistanceRows + j];
    for (int64_t j = 0; j < right.panel_rows(Q); ++j) sums[(right_begin + j) * groups + a->group] += to_right[j];
  }
}

// Adds the distances between block I of `left` and block J of `right`. If both are the `same` block, each unordered
// pair of panels is visited once. A row's distance to itself is 0, or NaN if the row is not finite. It is added like
// any other.
void add_pairs(const Blocks& left, int64_t I, const Blocks& right, int64_t J, bool same, int64_t dim, int64_t groups,
               const Scratch& scratch, double* sums) {
  const auto& prims = primitives<double>();
  const int64_t left_first = left.panels_begin(I), left_panels = left.panels_end(I) - left_first;
  const int64_t right_first = right.panels_begin(J), right_panels = right.panels_end(J) - right_first;
  std::fill_n(scratch.tiles.get(), left_panels * right_panels * kTile, 0.0);
  for (int64_t column = 0; column < dim; column += kDepth) {
    const int64_t depth = std::min(kDepth, dim - column), panel = depth * kDistanceRows;
    const double* x = scratch.left.get();
    const double* y = same ? x : scratch.right.get();
    left.load(I, column, depth, scratch, scratch.left.get());
    if (!same) right.load(J, column, depth, scratch, scratch.right.get());
    for (int64_t p = 0; p < left_panels; ++p)
      for (int64_t q = same ? p : 0; q < right_panels; ++q)
        prims.add_squared_distances(x + p * panel, y + q * panel, depth, scratch.tile(p, q, right_panels));
  }
  for (int64_t p = 0; p < left_panels; ++p)
    for (int64_t q = same ? p : 0; q < right_panels; ++q) {
      double* tile = scratch.tile(p, q, right_panels);
      prims.take_roots(tile, kTile);
      add_tile(tile, left, left_first + p, right, right_first + q, same && p == q, groups, sums);
    }
}

// Adds every pair of rows of one matrix once. In round r, block (r + k) mod n meets block (r - k) mod n, so each block
// has one meeting per round. A meeting waits until both blocks have finished the previous round. So a sum has one writer
// at a time, and additions follow the order of the rounds. Meetings are fetched in order, so the earliest unfinished
// one never waits.
void sum_among(const Blocks& blocks, int64_t dim, int64_t groups, double* sums) {
  const int64_t n = blocks.count() | 1, meetings = (n + 1) / 2;  // odd: the last block may not exist
  std::vector<std::atomic<int64_t>> rounds_done(static_cast<size_t>(n));
  run_queue(n * meetings, [&](auto& next) {
    const Scratch scratch(blocks.size(), blocks.size());
    for (int64_t item; (item = next()) >= 0;) {
      const int64_t round = item / meetings, k = item % meetings, pair[] = {(round + k) % n, (round - k + n) % n};
      for (int64_t block : pair)
        while (rounds_done[static_cast<size_t>(block)].load(std::memory_order_acquire) < round)
          std::this_thread::yield();
      if (std::max(pair[0], pair[1]) < blocks.count()) {
        add_pairs(blocks, pair[0], blocks, pair[1], k == 0, dim, groups, scratch, sums);
      }
      for (int64_t block : pair) rounds_done[static_cast<size_t>(block)].store(round + 1, std::memory_order_release);
    }
  });
}

void sum_to(const Blocks& rows, const Blocks& blocks, int64_t dim, int64_t groups, double* sums) {
  run_queue(rows.count(), [&](auto& next) {
    const Scratch scratch(rows.size(), blocks.size());
    for (int64_t I; (I = next()) >= 0;) {
      for (int64_t J = 0; J < blocks.count(); ++J) add_pairs(rows, I, blocks, J, false, dim, groups, scratch, sums);
    }
  });
}

Tensor silhouette_sums_cpu(const Tensor& features, const Tensor& offsets, const std::optional<Tensor>& rows) {
  check_silhouette_sums(features, offsets, rows);
  const std::vector<int64_t> bounds = read_offsets("silhouette_sums", "offsets", offsets, features.size(0));
  const int64_t dim = features.size(1), groups = static_cast<int64_t>(bounds.size()) - 1;
  const Tensor& queries = rows ? *rows : features;
  Tensor out = torch::stable::new_zeros(features, {queries.size(0), groups}, ScalarType::Double);
  if (out.numel() == 0 || dim == 0) return out;
  double* sums = static_cast<double*>(out.mutable_data_ptr());
  const Blocks blocks(features, bounds);
  if (rows)
    sum_to(Blocks(*rows, {}), blocks, dim, groups, sums);
  else
    sum_among(blocks, dim, groups, sums);
  return out;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("silhouette_sums", TORCH_BOX(&dgcl::silhouette_sums_cpu)); }
