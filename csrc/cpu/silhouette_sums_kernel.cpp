// Sums of distances by class, exact from differences: canonical squared distances in float64, IEEE square roots, added
// up in a fixed order. The same bits for every number of threads and on every instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "../common/parallel.h"
#include "../ops/silhouette_sums.h"
#include "knn_problem.h"

namespace dgcl {
namespace {

constexpr int64_t kBlockElements = 1 << 16;  // of a widened block, unless kFewestRows are more
constexpr int64_t kFewestRows = 8, kMostRows = 64;

// Rows [begin, end) of one block, all of class `group`; -1: of none.
struct Segment {
  int64_t begin, end, group;
};

// A matrix cut into blocks of rows, and these into segments.
class Blocks {
 public:
  Blocks(const RowSource& source, int64_t rows, int64_t dim, const std::vector<int64_t>& offsets)
      : source_(source), rows_(rows), dim_(dim) {
    size_ = std::clamp(kBlockElements / std::max<int64_t>(dim, 1), kFewestRows, kMostRows);
    const int64_t classes = static_cast<int64_t>(offsets.size()) - 1;
    int64_t c = -1;  // the class of the row that is next
    for (int64_t row = 0; row < rows;) {
      if (row % size_ == 0) first_.push_back(segments_.size());
      while (c < classes && offsets[static_cast<size_t>(c + 1)] <= row) ++c;
      int64_t end = std::min(rows, (row / size_ + 1) * size_);
      if (c < classes) end = std::min(end, offsets[static_cast<size_t>(c + 1)]);
      segments_.push_back({row, end, c < classes ? c : -1});
      row = end;
    }
    first_.push_back(segments_.size());
  }

  int64_t size() const { return size_; }
  int64_t count() const { return static_cast<int64_t>(first_.size()) - 1; }
  int64_t begin(int64_t block) const { return block * size_; }
  int64_t end(int64_t block) const { return std::min(rows_, begin(block) + size_); }
  const Segment* segments_begin(int64_t block) const { return segments_.data() + first_[static_cast<size_t>(block)]; }
  const Segment* segments_end(int64_t block) const { return segments_begin(block + 1); }

  // The block's rows, widened: [size, dim].
  void load(int64_t block, double* out) const {
    for (int64_t i = begin(block); i < end(block); ++i)
      load_row(primitives<double>(), source_.dtype, source_.row(i), dim_, out + (i - begin(block)) * dim_);
  }

 private:
  RowSource source_;
  int64_t rows_, dim_, size_;
  std::vector<Segment> segments_;
  std::vector<size_t> first_;
};

struct Scratch {
  Buffer<double> left, right, to_right;
  Scratch(int64_t left_size, int64_t right_size, int64_t dim)
      : left(left_size * dim), right(right_size * dim), to_right(right_size) {}
};

// Adds the distances between block I of `left` and block J of `right` to the sums [rows, groups] of I's rows, class by
// class of J; and, where I's rows have a class, to the sums of J's rows. Left and right being the same block, each
// unordered pair is visited once.
void add_pairs(const Blocks& left, int64_t I, const Blocks& right, int64_t J, bool same, int64_t dim, int64_t groups,
               const Scratch& scratch, double* sums) {
  const auto squared_distance = primitives<double>().squared_distance;
  const int64_t right_begin = right.begin(J), right_rows = right.end(J) - right_begin;
  double* to_right = scratch.to_right.get();
  for (const Segment* a = left.segments_begin(I); a != left.segments_end(I); ++a) {
    std::fill_n(to_right, right_rows, 0.0);
    for (int64_t i = a->begin; i < a->end; ++i) {
      const double* x = scratch.left.get() + (i - left.begin(I)) * dim;
      for (const Segment* b = right.segments_begin(J); b != right.segments_end(J); ++b) {
        double sum = 0;
        // A row's distance to itself is 0, or NaN if the row is not finite: it is added like any other.
        for (int64_t j = same ? std::max(i, b->begin) : b->begin; j < b->end; ++j) {
          const double* y = scratch.right.get() + (j - right_begin) * dim;
          const double distance = std::sqrt(squared_distance(x, y, dim));
          sum += distance;
          to_right[j - right_begin] += distance;
        }
        if (b->group >= 0) sums[i * groups + b->group] += sum;
      }
    }
    if (a->group >= 0)
      for (int64_t j = 0; j < right_rows; ++j) sums[(right_begin + j) * groups + a->group] += to_right[j];
  }
}

// Every pair of rows of one matrix, each once. In round r, block (r + k) mod n meets block (r - k) mod n, so that each
// block has one meeting per round. A meeting waits until both blocks have had that of the round before: a sum has one
// writer at a time, and the order of the rounds is the order of the additions. Meetings are fetched in order, so the
// earliest one under way never waits.
void sum_among(const Blocks& blocks, int64_t dim, int64_t groups, double* sums) {
  const int64_t n = blocks.count() | 1, meetings = (n + 1) / 2;  // odd: the last block may be one that is not there
  std::vector<std::atomic<int64_t>> rounds_done(static_cast<size_t>(n));
  run_queue(n * meetings, [&](auto& next) {
    const Scratch scratch(blocks.size(), blocks.size(), dim);
    for (int64_t item; (item = next()) >= 0;) {
      const int64_t round = item / meetings, k = item % meetings, pair[] = {(round + k) % n, (round - k + n) % n};
      for (int64_t block : pair)
        while (rounds_done[static_cast<size_t>(block)].load(std::memory_order_acquire) < round)
          std::this_thread::yield();
      if (std::max(pair[0], pair[1]) < blocks.count()) {
        blocks.load(pair[0], scratch.left.get());
        blocks.load(pair[1], scratch.right.get());
        add_pairs(blocks, pair[0], blocks, pair[1], k == 0, dim, groups, scratch, sums);
      }
      for (int64_t block : pair) rounds_done[static_cast<size_t>(block)].store(round + 1, std::memory_order_release);
    }
  });
}

void sum_to(const Blocks& rows, const Blocks& blocks, int64_t dim, int64_t groups, double* sums) {
  run_queue(rows.count(), [&](auto& next) {
    const Scratch scratch(rows.size(), blocks.size(), dim);
    for (int64_t I; (I = next()) >= 0;) {
      rows.load(I, scratch.left.get());
      for (int64_t J = 0; J < blocks.count(); ++J) {
        blocks.load(J, scratch.right.get());
        add_pairs(rows, I, blocks, J, false, dim, groups, scratch, sums);
      }
    }
  });
}

Tensor silhouette_sums_cpu(const Tensor& features, const Tensor& offsets, const std::optional<Tensor>& rows) {
  check_silhouette_sums(features, offsets, rows);
  const char* op = "silhouette_sums";
  const std::vector<int64_t> bounds = read_counts(op, "offsets", offsets, features.size(0));
  for (size_t c = 1; c < bounds.size(); ++c)
    if (bounds[c] < bounds[c - 1]) fail(op, "offsets must not decrease, got ", bounds[c - 1], " before ", bounds[c]);
  const int64_t dim = features.size(1), groups = static_cast<int64_t>(bounds.size()) - 1;
  const Tensor& asking = rows ? *rows : features;
  Tensor out = torch::stable::new_zeros(features, {asking.size(0), groups}, ScalarType::Double);
  if (out.numel() == 0) return out;
  double* sums = static_cast<double*>(out.mutable_data_ptr());
  Tensor keep_features, keep_rows;
  const Blocks blocks(row_source(features, keep_features), features.size(0), dim, bounds);
  if (rows)
    sum_to(Blocks(row_source(*rows, keep_rows), rows->size(0), dim, {}), blocks, dim, groups, sums);
  else
    sum_among(blocks, dim, groups, sums);
  return out;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("silhouette_sums", TORCH_BOX(&dgcl::silhouette_sums_cpu)); }
