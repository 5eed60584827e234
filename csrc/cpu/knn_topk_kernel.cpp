#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "../common/parallel.h"
#include "../ops/knn_topk.h"
#include "knn_problem.h"

namespace dgcl {
namespace {

template <typename T>
void topk(const KnnProblem& problem, Tensor& values, Tensor& indices) {
  const int64_t k = problem.k;
  T* value = static_cast<T*>(values.mutable_data_ptr());
  int64_t* index = static_cast<int64_t*>(indices.mutable_data_ptr());
  std::fill_n(value, values.numel(), -std::numeric_limits<T>::infinity());
  std::fill_n(index, indices.numel(), int64_t(-1));
  knn_search<T>(problem, [&](int64_t query, const Neighbour<T>* neighbours, int64_t found) {
    for (int64_t r = 0; r < found; ++r) {
      value[query * k + r] = neighbours[r].score;
      index[query * k + r] = neighbours[r].index;
    }
  });
}

std::tuple<Tensor, Tensor> knn_topk_cpu(const Tensor& queries, const Tensor& bank, int64_t k, const std::string& metric,
                                        std::optional<Tensor> query_offsets, std::optional<Tensor> bank_counts,
                                        bool exclude_self, bool unit_bank) {
  check_knn_topk(queries, bank, k, metric, query_offsets, bank_counts);
  const KnnTensors made =
      make_knn_problem("knn_topk", queries, bank, k, metric, query_offsets, bank_counts, exclude_self, unit_bank);
  const ScalarType type = compute_type(queries, bank);
  Tensor values = torch::stable::new_empty(queries, {queries.size(0), k}, type);
  Tensor indices = torch::stable::new_empty(queries, {queries.size(0), k}, ScalarType::Long);
  if (type == ScalarType::Double)
    topk<double>(made.problem, values, indices);
  else
    topk<float>(made.problem, values, indices);
  return {values, indices};
}

// With the neighbours held fixed, each (query q, neighbour b) of score s and incoming gradient g adds
//   to q:  a b + c_q q        to b:  a q + c_b b
//   cosine: a = g / (|q| |b|), c_q = -g s / |q|^2, c_b = -g s / |b|^2      (a unit bank counts as it is: |b| = 1, c_b =
//   0) dot:    a = g, c_q = c_b = 0 l2:     s = -|q - b|: a = -g / s, c_q = c_b = g / s                    (0 at
//   distance 0)
// Rows of length 0 get 0.
template <typename T>
class TopkBackward {
 public:
  TopkBackward(const KnnProblem& problem, const T* grad_values, const T* values, const int64_t* indices)
      : p_(problem), prims_(primitives<T>()), grad_(grad_values), value_(values), index_(indices) {
    query_norm_.resize(static_cast<size_t>(p_.offsets.back()));
    if (p_.metric == Metric::cosine) {
      fill_norms(p_.queries, 0, p_.offsets.back(), query_norm_.data());
      bank_norm_.assign(p_.counts.size() * static_cast<size_t>(p_.bank_rows), 1.0);
      if (!p_.unit_bank)
        for (size_t c = 0; c < p_.counts.size(); ++c)
          fill_norms(p_.bank, static_cast<int64_t>(c), p_.bank_rows,
                     bank_norm_.data() + c * static_cast<size_t>(p_.bank_rows));
    }
  }

  // out [M][dim] in T
  void queries(T* out) const {
    run_queue(static_cast<int64_t>(p_.counts.size()) * kSlices, [&](auto& next) {
      std::vector<T> q(static_cast<size_t>(p_.dim)), b(static_cast<size_t>(p_.dim));
      for (int64_t item; (item = next()) >= 0;) {
        const int64_t c = item / kSlices, slice = item % kSlices;
        const int64_t begin = p_.offsets[c], length = p_.offsets[c + 1] - begin;
        for (int64_t i = begin + length * slice / kSlices; i < begin + length * (slice + 1) / kSlices; ++i) {
          load_row(prims_, p_.queries.dtype, p_.queries.row(i), p_.dim, q.data());
          for (int64_t r = 0; r < p_.k; ++r) {
            const Terms t = terms(c, i, r);
            if (!t.used) continue;
            load_row(prims_, p_.bank.dtype, p_.bank.row(t.row, c), p_.dim, b.data());
            prims_.axpy(t.other, b.data(), p_.dim, out + i * p_.dim);
            prims_.axpy(t.query_self, q.data(), p_.dim, out + i * p_.dim);
          }
        }
      }
    });
  }

  // out [C][N][dim] in T. Threads own columns, so that every sum has one order.
  void bank(T* out) const {
    const int64_t width = 64, slices = (p_.dim + width - 1) / width;
    run_queue(slices, [&](auto& next) {
      std::vector<T> q(static_cast<size_t>(p_.dim)), b(static_cast<size_t>(p_.dim));
      for (int64_t slice; (slice = next()) >= 0;) {
        const int64_t first = slice * width, columns = std::min(width, p_.dim - first);
        for (int64_t c = 0; c < static_cast<int64_t>(p_.counts.size()); ++c)
          for (int64_t i = p_.offsets[c]; i < p_.offsets[c + 1]; ++i) {
            load_slice(p_.queries, p_.queries.row(i), first, columns, q.data());
            for (int64_t r = 0; r < p_.k; ++r) {
              const Terms t = terms(c, i, r);
              if (!t.used) continue;
              load_slice(p_.bank, p_.bank.row(t.row, c), first, columns, b.data());
              T* to = out + (c * p_.bank_rows + t.row) * p_.dim + first;
              prims_.axpy(t.other, q.data(), columns, to);
              prims_.axpy(t.bank_self, b.data(), columns, to);
            }
          }
      }
    });
  }

 private:
  static constexpr int64_t kSlices = 8;
  struct Terms {
    bool used = false;
    int64_t row = 0;
    T other = 0, query_self = 0, bank_self = 0;
  };

  void load_slice(const RowSource& source, const char* row, int64_t first, int64_t columns, T* out) const {
    const int64_t bytes = source.dtype == ScalarType::Double ? 8 : source.dtype == ScalarType::Float ? 4 : 2;
    load_row(prims_, source.dtype, row + first * bytes, columns, out);
  }

  void fill_norms(const RowSource& source, int64_t group, int64_t count, double* norms) const {
    std::vector<T> x(static_cast<size_t>(p_.dim));
    for (int64_t i = 0; i < count; ++i) {
      load_row(prims_, source.dtype, source.row(i, group), p_.dim, x.data());
      double square = 0;
      for (T v : x) square += static_cast<double>(v) * static_cast<double>(v);
      norms[i] = std::sqrt(square);
    }
  }

  Terms terms(int64_t c, int64_t i, int64_t r) const {
    Terms t;
    t.row = index_[i * p_.k + r];
    const double g = grad_[i * p_.k + r], s = value_[i * p_.k + r];
    if (t.row < 0 || g == 0) return t;
    if (p_.metric == Metric::cosine) {
      const double q = query_norm_[static_cast<size_t>(i)],
                   b = bank_norm_[static_cast<size_t>(c * p_.bank_rows + t.row)];
      if (q == 0 || b == 0) return t;
      t.other = static_cast<T>(g / (q * b));
      t.query_self = static_cast<T>(-g * s / (q * q));
      t.bank_self = p_.unit_bank ? T(0) : static_cast<T>(-g * s / (b * b));
    } else if (p_.metric == Metric::dot) {
      t.other = static_cast<T>(g);
    } else {
      if (s == 0) return t;
      t.other = static_cast<T>(-g / s);
      t.query_self = t.bank_self = static_cast<T>(g / s);
    }
    t.used = true;
    return t;
  }

  const KnnProblem& p_;
  const Primitives<T>& prims_;
  const T* grad_;
  const T* value_;
  const int64_t* index_;
  std::vector<double> query_norm_, bank_norm_;
};

// Rows of T into a tensor of its own dtype.
template <typename T>
void store_rows(const std::vector<T>& rows, int64_t dim, Tensor& out) {
  char* data = static_cast<char*>(out.mutable_data_ptr());
  const int64_t bytes = dim * static_cast<int64_t>(out.element_size());
  for (int64_t i = 0; i < out.numel() / dim; ++i)
    store_row(out.scalar_type(), rows.data() + i * dim, dim, data + i * bytes);
}

template <typename T>
void backward(const KnnProblem& problem, const Tensor& grad_values, const Tensor& values, const Tensor& indices,
              Tensor& grad_queries, Tensor& grad_bank) {
  const TopkBackward<T> pass(problem, static_cast<const T*>(grad_values.const_data_ptr()),
                             static_cast<const T*>(values.const_data_ptr()),
                             static_cast<const int64_t*>(indices.const_data_ptr()));
  std::vector<T> rows(static_cast<size_t>(grad_queries.numel()), T(0));
  pass.queries(rows.data());
  store_rows(rows, problem.dim, grad_queries);
  rows.assign(static_cast<size_t>(grad_bank.numel()), T(0));
  pass.bank(rows.data());
  store_rows(rows, problem.dim, grad_bank);
}

std::tuple<Tensor, Tensor> knn_topk_backward_cpu(const Tensor& grad_values, const Tensor& queries, const Tensor& bank,
                                                 const Tensor& values, const Tensor& indices, const std::string& metric,
                                                 std::optional<Tensor> query_offsets, bool unit_bank) {
  check_knn_topk_backward(grad_values, queries, bank, values, indices, metric, query_offsets);
  const KnnTensors made = make_knn_problem("knn_topk_backward", queries, bank, values.size(1), metric, query_offsets,
                                           std::nullopt, false, unit_bank);
  const Tensor grad = torch::stable::contiguous(grad_values), score = torch::stable::contiguous(values),
               index = torch::stable::contiguous(indices);
  const int64_t* row = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t i = 0; i < index.numel(); ++i)
    if (row[i] < -1 || row[i] >= made.problem.bank_rows)
      fail("knn_topk_backward", "indices must lie in [-1, ", made.problem.bank_rows, "), got ", row[i]);
  Tensor grad_queries = torch::stable::new_empty(queries, queries.sizes(), queries.scalar_type());
  Tensor grad_bank = torch::stable::new_empty(bank, bank.sizes(), bank.scalar_type());
  if (compute_type(queries, bank) == ScalarType::Double)
    backward<double>(made.problem, grad, score, index, grad_queries, grad_bank);
  else
    backward<float>(made.problem, grad, score, index, grad_queries, grad_bank);
  return {grad_queries, grad_bank};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) {
  m.impl("knn_topk", TORCH_BOX(&dgcl::knn_topk_cpu));
  m.impl("knn_topk_backward", TORCH_BOX(&dgcl::knn_topk_backward_cpu));
}
