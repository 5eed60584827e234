#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../common/counts.h"
#include "../common/parallel.h"
#include "../math/contrast.h"
#include "../ops/checks.h"
#include "panel.h"
#include "rows.h"

namespace dgcl {
namespace {

constexpr int64_t kAnchorBlock = 96;  // anchors of one work item; a multiple of every level's tile_rows

struct Problem {
  Tensor keep_anchors, keep_keys, keep_negatives;
  RowSource anchors, keys, negatives;  // keys: one row per group
  int64_t groups, num_anchors, num_negatives, dim;
  std::vector<int64_t> anchor_counts, negative_counts;
  double temperature;

  Problem(const char* op, const Tensor& a, const Tensor& k, const Tensor& n, double temperature_,
          const std::optional<Tensor>& a_counts, const std::optional<Tensor>& n_counts)
      : anchors(row_source(a, keep_anchors)),
        keys(row_source(k, keep_keys)),
        negatives(row_source(n, keep_negatives)),
        groups(a.size(0)),
        num_anchors(a.size(1)),
        num_negatives(n.size(1)),
        dim(a.size(2)),
        anchor_counts(a_counts ? read_counts(op, "anchor_counts", *a_counts, num_anchors)
                               : std::vector<int64_t>(static_cast<size_t>(groups), num_anchors)),
        negative_counts(n_counts ? read_counts(op, "negative_counts", *n_counts, num_negatives)
                                 : std::vector<int64_t>(static_cast<size_t>(groups), num_negatives)),
        temperature(temperature_) {}
};

// Unit rows of one group, and their norms for the way back to raw rows.
template <typename T>
struct UnitRows {
  Buffer<T> rows;
  Buffer<RowNorm<T>> norm;
  int64_t count, dim;

  UnitRows(int64_t capacity, int64_t dim_) : rows(capacity * dim_), norm(capacity), count(0), dim(dim_) {}

  void load(const RowSource& source, int64_t group, int64_t first, int64_t n) {
    const Primitives<T>& prims = primitives<T>();
    count = n;
    for (int64_t i = 0; i < n; ++i) {
      load_row(prims, source.dtype, source.row(first + i, group), dim, row(i));
      norm[i] = unit_row(prims, row(i), dim, row(i));
    }
  }
  T* row(int64_t i) const { return rows.get() + i * dim; }
  void to_raw(int64_t i, T* gradient) const { unit_row_backward(primitives<T>(), row(i), norm[i], dim, gradient); }
};

// <anchor, negative> / temperature for a block of anchors, tile by tile. `logits` is [anchor][negative].
template <typename T>
class LogitTiles {
 public:
  LogitTiles(int64_t num_negatives, int64_t dim)
      : prims_(primitives<T>()),
        dim_(dim),
        stride_((num_negatives + prims_.tile_columns - 1) / prims_.tile_columns * prims_.tile_columns),
        panels_(stride_ * dim),
        packed_(prims_.tile_rows * dim),
        logits_(prims_.tile_rows * std::max<int64_t>(stride_, 1)) {}

  void set_negatives(const UnitRows<T>& negatives) {
    count_ = negatives.count;
    for (int64_t first = 0; first < count_; first += prims_.tile_columns) {
      const T* rows[kMaxTileColumns];
      const int64_t n = std::min<int64_t>(prims_.tile_columns, count_ - first);
      for (int64_t c = 0; c < n; ++c) rows[c] = negatives.row(first + c);
      pack_columns(rows, n, dim_, prims_.tile_columns, panels_.get() + first * dim_);
    }
  }

  // Logits of anchors [first, first + rows), rows <= tile_rows. Row r starts at logits(r).
  void compute(const UnitRows<T>& anchors, int64_t first, int64_t rows, double temperature) {
    const T* row[kMaxTileRows];
    for (int64_t r = 0; r < rows; ++r) row[r] = anchors.row(first + r);
    pack_columns(row, rows, dim_, prims_.tile_rows, packed_.get());
    const T bias[kMaxTileColumns] = {}, threshold[kMaxTileRows] = {};
    uint64_t passes[kMaxTileRows];
    T scores[kMaxTileRows * kMaxTileColumns];
    for (int64_t start = 0; start < count_; start += prims_.tile_columns) {
      prims_.score_tile(packed_.get(), panels_.get() + start * dim_, bias, dim_, threshold, scores, passes);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < prims_.tile_columns; ++c)
          logits_[r * stride_ + start + c] = static_cast<T>(scores[r * prims_.tile_columns + c] / temperature);
    }
  }
  T* logits(int64_t r) { return logits_.get() + r * stride_; }
  int64_t tile_rows() const { return prims_.tile_rows; }

 private:
  const Primitives<T>& prims_;
  int64_t dim_, stride_, count_ = 0;
  Buffer<T> panels_, packed_, logits_;
};

template <typename T>
void forward(const Problem& p, double eps, T* loss, T* lse) {
  std::fill_n(loss, p.groups, T(0));
  std::fill_n(lse, p.groups * p.num_anchors, T(0));
  const int64_t blocks = (p.num_anchors + kAnchorBlock - 1) / kAnchorBlock;
  std::vector<double> block_sums(static_cast<size_t>(p.groups * blocks), 0.0);  // added in order at the end
  run_queue(p.groups * blocks, [&](auto& next) {
    UnitRows<T> anchors(kAnchorBlock, p.dim), key(1, p.dim), negatives(p.num_negatives, p.dim);
    LogitTiles<T> tiles(p.num_negatives, p.dim);
    for (int64_t item; (item = next()) >= 0;) {
      const int64_t g = item / blocks, first = item % blocks * kAnchorBlock;
      const int64_t count = std::min(kAnchorBlock, p.anchor_counts[g] - first);
      if (count <= 0) continue;
      anchors.load(p.anchors, g, first, count);
      key.load(p.keys, 0, g, 1);
      negatives.load(p.negatives, g, 0, p.negative_counts[g]);
      tiles.set_negatives(negatives);
      double sum = 0;
      for (int64_t start = 0; start < count; start += tiles.tile_rows()) {
        const int64_t rows = std::min(tiles.tile_rows(), count - start);
        tiles.compute(anchors, start, rows, p.temperature);
        for (int64_t r = 0; r < rows; ++r) {
          const double key_logit = primitives<T>().dot(anchors.row(start + r), key.row(0), p.dim) / p.temperature;
          LogSumExp total;
          total.add(key_logit);
          for (int64_t j = 0; j < negatives.count; ++j) total.add(tiles.logits(r)[j]);
          const double value = total.value(eps);
          lse[g * p.num_anchors + first + start + r] = static_cast<T>(value);
          sum += contrast_loss(key_logit, value);
        }
      }
      block_sums[static_cast<size_t>(item)] = sum;
    }
  });
  for (int64_t g = 0; g < p.groups; ++g) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += block_sums[static_cast<size_t>(g * blocks + b)];
    if (p.anchor_counts[g] > 0) loss[g] = static_cast<T>(sum / static_cast<double>(p.anchor_counts[g]));
  }
}

template <typename T>
void write(Tensor& out, int64_t row, const T* x, int64_t dim) {
  char* data = static_cast<char*>(out.mutable_data_ptr());
  store_row(out.scalar_type(), x, dim, data + row * dim * static_cast<int64_t>(out.element_size()));
}

// A thread takes one group at a time, so every sum has one order. Rows beyond the counts get 0.
template <typename T>
void backward(const Problem& p, const T* dL_dloss, const T* lse, Tensor& dL_danchors, Tensor& dL_dkeys,
              Tensor& dL_dnegatives, bool needs_key_grad) {
  run_queue(p.groups, [&](auto& next) {
    const Primitives<T>& prims = primitives<T>();
    UnitRows<T> anchors(p.num_anchors, p.dim), key(1, p.dim), negatives(p.num_negatives, p.dim);
    LogitTiles<T> tiles(p.num_negatives, p.dim);
    Buffer<T> gradient(p.dim), key_gradient(p.dim), negative_gradient(needs_key_grad ? p.num_negatives * p.dim : 0),
        zeros(p.dim);
    std::fill_n(zeros.get(), p.dim, T(0));
    for (int64_t g; (g = next()) >= 0;) {
      const int64_t count = p.anchor_counts[g];
      const double scale = contrast_gradient_scale(dL_dloss[g], static_cast<double>(count), p.temperature);
      anchors.load(p.anchors, g, 0, count);
      key.load(p.keys, 0, g, 1);
      negatives.load(p.negatives, g, 0, p.negative_counts[g]);
      tiles.set_negatives(negatives);
      std::fill_n(key_gradient.get(), p.dim, T(0));
      std::fill_n(negative_gradient.get(), negative_gradient.size(), T(0));
      for (int64_t start = 0; start < count; start += tiles.tile_rows()) {
        const int64_t rows = std::min(tiles.tile_rows(), count - start);
        tiles.compute(anchors, start, rows, p.temperature);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t i = start + r;
          const T* anchor = anchors.row(i);
          const double key_logit = prims.dot(anchor, key.row(0), p.dim) / p.temperature,
                       total = lse[g * p.num_anchors + i];
          const T at_key = static_cast<T>(scale * (contrast_probability(key_logit, total) - 1));
          std::fill_n(gradient.get(), p.dim, T(0));
          prims.axpy(at_key, key.row(0), p.dim, gradient.get());
          if (needs_key_grad) prims.axpy(at_key, anchor, p.dim, key_gradient.get());
          for (int64_t j = 0; j < negatives.count; ++j) {
            const T at_negative = static_cast<T>(scale * contrast_probability(tiles.logits(r)[j], total));
            prims.axpy(at_negative, negatives.row(j), p.dim, gradient.get());
            if (needs_key_grad) prims.axpy(at_negative, anchor, p.dim, negative_gradient.get() + j * p.dim);
          }
          anchors.to_raw(i, gradient.get());
          write(dL_danchors, g * p.num_anchors + i, gradient.get(), p.dim);
        }
      }
      for (int64_t i = count; i < p.num_anchors; ++i) write(dL_danchors, g * p.num_anchors + i, zeros.get(), p.dim);
      if (!needs_key_grad) continue;
      key.to_raw(0, key_gradient.get());
      write(dL_dkeys, g, key_gradient.get(), p.dim);
      for (int64_t j = 0; j < p.num_negatives; ++j) {
        T* row = j < negatives.count ? negative_gradient.get() + j * p.dim : zeros.get();
        if (j < negatives.count) negatives.to_raw(j, row);
        write(dL_dnegatives, g * p.num_negatives + j, row, p.dim);
      }
    }
  });
}

std::tuple<Tensor, Tensor> density_contrast_cpu(const Tensor& anchors, const Tensor& keys, const Tensor& negatives,
                                                double temperature, std::optional<Tensor> anchor_counts,
                                                std::optional<Tensor> negative_counts, double eps) {
  check_density_contrast(anchors, keys, negatives, temperature, anchor_counts, negative_counts, eps);
  const Problem p("density_contrast", anchors, keys, negatives, temperature, anchor_counts, negative_counts);
  const ScalarType type = compute_type(anchors, keys, negatives);
  Tensor loss = torch::stable::new_empty(anchors, {p.groups}, type);
  Tensor lse = torch::stable::new_empty(anchors, {p.groups, p.num_anchors}, type);
  if (type == ScalarType::Double)
    forward(p, eps, static_cast<double*>(loss.mutable_data_ptr()), static_cast<double*>(lse.mutable_data_ptr()));
  else
    forward(p, eps, static_cast<float*>(loss.mutable_data_ptr()), static_cast<float*>(lse.mutable_data_ptr()));
  return {loss, lse};
}

std::tuple<Tensor, Tensor, Tensor> density_contrast_backward_cpu(const Tensor& dL_dloss, const Tensor& anchors,
                                                                 const Tensor& keys, const Tensor& negatives,
                                                                 const Tensor& lse, double temperature,
                                                                 std::optional<Tensor> anchor_counts,
                                                                 std::optional<Tensor> negative_counts,
                                                                 bool needs_key_grad) {
  check_density_contrast_backward(dL_dloss, anchors, keys, negatives, lse, temperature, anchor_counts, negative_counts);
  const Problem p("density_contrast_backward", anchors, keys, negatives, temperature, anchor_counts, negative_counts);
  const Tensor upstream = torch::stable::contiguous(dL_dloss), saved = torch::stable::contiguous(lse);
  Tensor dL_danchors = torch::stable::new_empty(anchors, anchors.sizes(), anchors.scalar_type());
  Tensor dL_dkeys = needs_key_grad ? torch::stable::new_empty(keys, keys.sizes()) : torch::stable::new_empty(keys, {0});
  Tensor dL_dnegatives = needs_key_grad ? torch::stable::new_empty(negatives, negatives.sizes())
                                        : torch::stable::new_empty(negatives, {0});
  if (compute_type(anchors, keys, negatives) == ScalarType::Double)
    backward(p, static_cast<const double*>(upstream.const_data_ptr()),
             static_cast<const double*>(saved.const_data_ptr()), dL_danchors, dL_dkeys, dL_dnegatives, needs_key_grad);
  else
    backward(p, static_cast<const float*>(upstream.const_data_ptr()), static_cast<const float*>(saved.const_data_ptr()),
             dL_danchors, dL_dkeys, dL_dnegatives, needs_key_grad);
  return {dL_danchors, dL_dkeys, dL_dnegatives};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) {
  m.impl("density_contrast", TORCH_BOX(&dgcl::density_contrast_cpu));
  m.impl("density_contrast_backward", TORCH_BOX(&dgcl::density_contrast_backward_cpu));
}
