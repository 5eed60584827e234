// A filter in 8-bit integers, with both sides centred at the class's mean: a quarter of the work. Its error bound
// shrinks with the class's radius (math/filter_bound.h).
#pragma once
#include <cstring>
#include <vector>

#include "../../common/parallel.h"
#include "../../math/filter_bound.h"
#include "../simd/int8_tile.h"
#include "rows.h"

namespace dgcl {

// The bank in 8 bits: panels of 64 rows, [steps][64][4], and the scale, bias and offset of each row. One byte per
// element, quantized once per call.
class Int8Bank {
 public:
  struct Group {
    float norm = 0, residual = 0, error = 0;  // largest |b|, |b - mean|, |b - mean - its 8-bit copy|
    float mean_norm = 0;
    int64_t large_norms = 0;
  };

  Int8Bank(const KnnRows<float>& rows, const std::vector<int64_t>& chosen)
      : steps((rows.p.dim + 3) / 4),
        groups(rows.p.counts.size()),
        rows_(rows),
        prims_(*int8_primitives()),
        place_(rows.p.counts.size()) {
    struct Panel {
      int64_t group, first;
      Group part;
    };
    std::vector<Panel> panels;
    for (size_t i = 0; i < chosen.size(); ++i) {
      const int64_t group = chosen[i];
      place_[static_cast<size_t>(group)] = {static_cast<int64_t>(i), static_cast<int64_t>(panels.size()) * kPanelRows};
      for (int64_t first = 0; first < rows.p.counts[static_cast<size_t>(group)]; first += kPanelRows)
        panels.push_back({group, first, {}});
    }
    const int64_t padded = static_cast<int64_t>(panels.size()) * kPanelRows;
    mean_ = Buffer<float>(static_cast<int64_t>(chosen.size()) * rows.p.dim);
    packed_ = Buffer<int8_t>(padded * steps * 4);
    start_ = Buffer<int32_t>(padded);
    scale_ = Buffer<float>(padded);
    bias_ = Buffer<float>(padded);
    run_queue(static_cast<int64_t>(chosen.size()), [&](auto& next) {
      for (int64_t i; (i = next()) >= 0;) compute_mean(chosen[static_cast<size_t>(i)]);
    });
    run_queue(static_cast<int64_t>(panels.size()), [&](auto& next) {
      Buffer<float> row(rows.p.dim), residual(rows.p.dim);
      Buffer<int8_t> integers(steps * 4);
      for (int64_t i; (i = next()) >= 0;) {
        Panel& panel = panels[static_cast<size_t>(i)];
        pack_panel(panel.group, panel.first, row.get(), residual.get(), integers.get(), panel.part);
      }
    });
    for (const Panel& panel : panels) {
      Group& whole = groups[static_cast<size_t>(panel.group)];
      whole.norm = std::max(whole.norm, panel.part.norm);
      whole.residual = std::max(whole.residual, panel.part.residual);
      whole.error = std::max(whole.error, panel.part.error);
      whole.large_norms += panel.part.large_norms;
    }
  }

  const float* mean(int64_t group) const {
    return mean_.get() + place_[static_cast<size_t>(group)].number * rows_.p.dim;
  }
  const int8_t* panel(int64_t group, int64_t start) const { return packed_.get() + at(group, start) * steps * 4; }
  const int32_t* start(int64_t group, int64_t row) const { return start_.get() + at(group, row); }
  const float* scale(int64_t group, int64_t row) const { return scale_.get() + at(group, row); }
  const float* bias(int64_t group, int64_t row) const { return bias_.get() + at(group, row); }

  // residual = row - mean. Returns an upper bound of its length.
  float centre(int64_t group, const float* row, float* residual) const {
    const float* mu = mean(group);
    for (int64_t d = 0; d < rows_.p.dim; ++d) residual[d] = row[d] - mu[d];
    return rows_.norm_bound(residual, rows_.prims.dot(residual, residual, rows_.p.dim));
  }

  const int64_t steps;
  std::vector<Group> groups;

 private:
  struct Place {
    int64_t number, first_row;  // among the packed classes and rows
  };
  const KnnRows<float>& rows_;
  const Int8Primitives& prims_;
  std::vector<Place> place_;
  Buffer<float> mean_;
  Buffer<int8_t> packed_;
  Buffer<int32_t> start_;
  Buffer<float> scale_, bias_;

  int64_t at(int64_t group, int64_t row) const { return place_[static_cast<size_t>(group)].first_row + row; }

  // Any row is a valid mean. The mean of a sample is nearly as good as the mean of all rows.
  void compute_mean(int64_t group) {
    constexpr int64_t kSample = 512;
    const int64_t dim = rows_.p.dim, count = rows_.p.counts[group], sampled = std::min(count, kSample);
    float* mu = mean_.get() + place_[static_cast<size_t>(group)].number * dim;
    std::fill_n(mu, dim, 0.0f);
    Buffer<float> scratch(dim);
    int64_t used = 0;
    for (int64_t i = 0; i < sampled; ++i) {
      const float* row = rows_.bank_row(group, i * count / sampled, scratch.get());
      if (KnnRows<float>::has_large_norm(rows_.norm_bound(row, rows_.prims.dot(row, row, dim)))) continue;
      for (int64_t d = 0; d < dim; ++d) mu[d] += row[d];
      ++used;
    }
    if (used)
      for (int64_t d = 0; d < dim; ++d) mu[d] /= static_cast<float>(used);
    groups[static_cast<size_t>(group)].mean_norm = rows_.norm_bound(mu, rows_.prims.dot(mu, mu, dim));
  }

  void pack_panel(int64_t group, int64_t first, float* scratch, float* residual, int8_t* integers, Group& part) {
    const int64_t dim = rows_.p.dim;
    int8_t* out = packed_.get() + at(group, first) * steps * 4;
    for (int64_t c = 0; c < kPanelRows; ++c) {
      const int64_t i = first + c, to = at(group, i);
      Quantized q{0, 0, 0};
      float bias = -std::numeric_limits<float>::infinity();  // for padding
      std::fill_n(integers, steps * 4, int8_t(0));
      if (i < rows_.p.counts[group]) {
        const float* row = rows_.bank_row(group, i, scratch);
        const float norm = rows_.norm_bound(row, rows_.prims.dot(row, row, dim));
        bias = KnnRows<float>::special_bias(norm);
        part.large_norms += bias > 0;
        if (bias == 0) {
          const float length = centre(group, row, residual);
          q = prims_.quantize(residual, dim, integers);
          bias = rows_.p.metric == Metric::l2 ? -rows_.prims.dot(residual, residual, dim) / 2
                                              : rows_.prims.dot(mean(group), residual, dim);
          part.norm = std::max(part.norm, norm);
          part.residual = std::max(part.residual, length);
          part.error = std::max(part.error, q.scale > 0 ? q.error : length);
        }
      }
      start_[to] = -128 * q.sum;  // queries are stored with 128 added
      scale_[to] = q.scale;
      bias_[to] = bias;
      for (int64_t s = 0; s < steps; ++s) std::memcpy(out + (s * kPanelRows + c) * 4, integers + s * 4, 4);
    }
  }
};

class Int8Filter {
 public:
  static constexpr bool kExact = false;

  Int8Filter(const KnnRows<float>& rows, const Int8Bank& bank, int64_t block)
      : rows_(rows),
        prims_(*int8_primitives()),
        bank_(bank),
        queries_((block + kMaxTileRows) * bank.steps * 4),
        scale_(block + kMaxTileRows),
        error_(block + kMaxTileRows),
        rounding_(block + kMaxTileRows),
        omitted_(block + kMaxTileRows),
        residual_(rows.p.dim),
        integers_(bank.steps * 4) {}

  int tile_rows() const { return prims_.tile_rows; }
  int tile_columns() const { return kPanelRows; }
  int64_t large_norm_rows(int64_t group) const { return bank_.groups[static_cast<size_t>(group)].large_norms; }
  float error(int64_t q) const { return error_[q]; }
  // Rows below this filter score have a canonical score below `canonical`.
  float lowest_filter_score(int64_t q, float canonical) const {
    const float product = rows_.p.metric == Metric::l2 ? -canonical * canonical / 2 : canonical;
    return product - omitted_[q] - error_[q] - rounding_[q];
  }
  void begin_group(int64_t group) {
    group_ = group;
    if (prims_.begin_tiles) prims_.begin_tiles(bank_.steps);
  }
  void end_group() {
    if (prims_.end_tiles) prims_.end_tiles();
  }

  // A query with a NaN, of norm NaN, takes part as zeros.
  void set_query(int64_t q, const float* row, float norm) {
    const Int8Bank::Group& group = bank_.groups[static_cast<size_t>(group_)];
    std::fill_n(integers_.get(), bank_.steps * 4, int8_t(0));
    Quantized quantized{0, 0, 0};
    float length = 0;
    if (!std::isnan(norm)) {
      length = bank_.centre(group_, row, residual_.get());
      quantized = prims_.quantize(residual_.get(), rows_.p.dim, integers_.get());
    }
    scale_[q] = quantized.scale;
    const bool l2 = rows_.p.metric == Metric::l2;
    const CentredLengths lengths{norm, group.norm, group.mean_norm, length, group.residual};
    error_[q] =
        int8_filter_bound(l2, rows_.p.dim, lengths, quantized.scale > 0 ? quantized.error : length, group.error);
    rounding_[q] = int8_filter_bound(l2, rows_.p.dim, lengths, 0, 0);
    if (!std::isnan(norm))
      omitted_[q] = l2 ? -rows_.prims.dot(residual_.get(), residual_.get(), rows_.p.dim) / 2
                       : rows_.prims.dot(bank_.mean(group_), row, rows_.p.dim);
    const int64_t tile_rows = prims_.tile_rows;
    for (int64_t s = 0; s < bank_.steps; s += prims_.together) {
      const int64_t bytes = 4 * std::min<int64_t>(prims_.together, bank_.steps - s);
      uint8_t* out = queries_.get() + (q - q % tile_rows) * bank_.steps * 4 + s * tile_rows * 4 + q % tile_rows * bytes;
      for (int64_t i = 0; i < bytes; ++i) out[i] = static_cast<uint8_t>(integers_[s * 4 + i] + 128);
    }
  }

  void begin_panel(int64_t start, int64_t) { start_ = start; }

  void score(int64_t tile, const float* threshold, float* scores, uint64_t* passes) const {
    prims_.score_tile(queries_.get() + tile * bank_.steps * 4, bank_.panel(group_, start_), bank_.start(group_, start_),
                      bank_.scale(group_, start_), bank_.bias(group_, start_), bank_.steps, scale_.get() + tile,
                      threshold, scores, passes);
  }

 private:
  const KnnRows<float>& rows_;
  const Int8Primitives& prims_;
  const Int8Bank& bank_;
  int64_t group_ = 0, start_ = 0;
  Buffer<uint8_t> queries_;
  Buffer<float> scale_, error_;
  Buffer<float> rounding_;  // the part of the error that is not quantization
  Buffer<float> omitted_;   // the terms of the canonical score that the filter omits
  Buffer<float> residual_;
  Buffer<int8_t> integers_;
};

}  // namespace dgcl
