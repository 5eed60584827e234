#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "../common/parallel.h"
#include "../math/score_gradient.h"
#include "../ops/checks.h"
#include "knn/search.h"

namespace dgcl {
namespace {

template <typename T>
void topk(const KnnProblem& problem, Tensor& values, Tensor& indices) {
  const int64_t k = problem.k;
  T* value = static_cast<T*>(values.mutable_data_ptr());
  int64_t* index = static_cast<int64_t*>(indices.mutable_data_ptr());
  std::fill_n(value, values.numel(), -std::numeric_limits<T>::infinity());
  std::fill_n(index, indices.numel(), int64_t(-1));
  knn_search<T>(problem, [&](int64_t query, const Neighbour<T>* neighbours, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      value[query * k + r] = neighbours[r].score;
      index[query * k + r] = neighbours[r].index;
    }
  });
}

std::tuple<Tensor, Tensor> knn_topk_cpu(const Tensor& queries, const Tensor& bank, int64_t k, const MetricName& metric,
                                        std::optional<Tensor> query_offsets, std::optional<Tensor> bank_counts,
                                        bool exclude_self, bool unit_bank) {
  check_knn_topk(queries, bank, k, metric, query_offsets, bank_counts);
  const KnnTensors input =
      make_knn_problem("knn_topk", queries, bank, k, metric, query_offsets, bank_counts, exclude_self, unit_bank);
  const ScalarType type = compute_type(queries, bank);
  Tensor values = torch::stable::new_empty(queries, {queries.size(0), k}, type);
  Tensor indices = torch::stable::new_empty(queries, {queries.size(0), k}, ScalarType::Long);
  if (type == ScalarType::Double)
    topk<double>(input.problem, values, indices);
  else
    topk<float>(input.problem, values, indices);
  return {values, indices};
}

// The neighbours are held fixed. Each row sums the gradients of its own pairs (math/score_gradient.h) in the order of
// the queries, so there are no atomic additions.
template <typename T>
class TopkBackward {
 public:
  TopkBackward(const KnnProblem& problem, int64_t num_queries, const T* dL_dvalues, const T* values,
               const int64_t* indices)
      : p_(problem),
        prims_(primitives<T>()),
        num_queries_(num_queries),
        dL_dvalues_(dL_dvalues),
        value_(values),
        index_(indices) {}

  void queries(Tensor& out) const {
    for_rows(num_queries_, out, [&](int64_t i, Scratch& scratch) {
      const int64_t c = class_of(i);
      if (c < 0) return;
      const RowNorm<T> norm = load(p_.queries, i, 0, normalize_queries(), scratch.own);
      for (int64_t pair = i * p_.k; pair < (i + 1) * p_.k; ++pair) {
        if (!used(pair)) continue;
        load(p_.bank, index_[pair], c, normalize_bank(), scratch.other);
        add(pair, scratch);
      }
      if (normalize_queries()) unit_row_backward(prims_, scratch.own.data(), norm, p_.dim, scratch.sum.data());
    });
  }

  void bank(Tensor& out) const {
    const int64_t total = static_cast<int64_t>(p_.counts.size()) * p_.bank_rows;
    std::vector<int64_t> begin(static_cast<size_t>(total + 1), 0), pairs;
    const auto row_of = [&](int64_t pair) { return class_of(pair / p_.k) * p_.bank_rows + index_[pair]; };
    const int64_t first = p_.offsets.front() * p_.k, last = p_.offsets.back() * p_.k;
    for (int64_t pair = first; pair < last; ++pair)
      if (used(pair)) ++begin[static_cast<size_t>(row_of(pair) + 1)];
    for (size_t row = 1; row < begin.size(); ++row) begin[row] += begin[row - 1];
    pairs.resize(static_cast<size_t>(begin.back()));
    std::vector<int64_t> cursor(begin.begin(), begin.end() - 1);
    for (int64_t pair = first; pair < last; ++pair)
      if (used(pair)) pairs[static_cast<size_t>(cursor[static_cast<size_t>(row_of(pair))]++)] = pair;

    for_rows(total, out, [&](int64_t row, Scratch& scratch) {
      const int64_t from = begin[static_cast<size_t>(row)], to = begin[static_cast<size_t>(row + 1)];
      if (from == to) return;
      const RowNorm<T> norm = load(p_.bank, row % p_.bank_rows, row / p_.bank_rows, normalize_bank(), scratch.own);
      for (int64_t i = from; i < to; ++i) {
        const int64_t pair = pairs[static_cast<size_t>(i)];
        load(p_.queries, pair / p_.k, 0, normalize_queries(), scratch.other);
        add(pair, scratch);
      }
      if (normalize_bank()) unit_row_backward(prims_, scratch.own.data(), norm, p_.dim, scratch.sum.data());
    });
  }

 private:
  struct Scratch {
    std::vector<T> own, other, sum;
    explicit Scratch(int64_t dim) : own(static_cast<size_t>(dim)), other(own), sum(own) {}
  };

  bool normalize_queries() const { return p_.metric == Metric::cosine; }
  bool normalize_bank() const { return p_.metric == Metric::cosine && !p_.unit_bank; }
  bool l2() const { return p_.metric == Metric::l2; }
  bool used(int64_t pair) const { return pair_has_gradient(l2(), index_[pair], dL_dvalues_[pair], value_[pair]); }

  // -1 for a query without a class.
  int64_t class_of(int64_t query) const {
    if (query < p_.offsets.front() || query >= p_.offsets.back()) return -1;
    return std::upper_bound(p_.offsets.begin(), p_.offsets.end(), query) - p_.offsets.begin() - 1;
  }

  RowNorm<T> load(const RowSource& source, int64_t i, int64_t group, bool normalize, std::vector<T>& out) const {
    load_row(prims_, source.dtype, source.row(i, group), p_.dim, out.data());
    return normalize ? unit_row(prims_, out.data(), p_.dim, out.data()) : RowNorm<T>{};
  }

  void add(int64_t pair, Scratch& scratch) const {
    if (l2())
      for (size_t d = 0; d < scratch.own.size(); ++d)
        scratch.other[d] = score_direction(true, scratch.own[d], scratch.other[d]);
    prims_.axpy(pair_factor(l2(), dL_dvalues_[pair], value_[pair]), scratch.other.data(), p_.dim, scratch.sum.data());
  }

  // compute(row, scratch) adds the row's gradient to scratch.sum, which starts at 0.
  template <typename Compute>
  void for_rows(int64_t count, Tensor& out, const Compute& compute) const {
    constexpr int64_t chunk = 32;
    const ScalarType dtype = out.scalar_type();
    const int64_t row_bytes = p_.dim * static_cast<int64_t>(out.element_size());
    char* data = static_cast<char*>(out.mutable_data_ptr());
    run_queue((count + chunk - 1) / chunk, [&](auto& next) {
      Scratch scratch(p_.dim);
      for (int64_t item; (item = next()) >= 0;)
        for (int64_t i = item * chunk; i < std::min((item + 1) * chunk, count); ++i) {
          std::fill(scratch.sum.begin(), scratch.sum.end(), T(0));
          compute(i, scratch);
          store_row(dtype, scratch.sum.data(), p_.dim, data + i * row_bytes);
        }
    });
  }

  const KnnProblem& p_;
  const Primitives<T>& prims_;
  const int64_t num_queries_;
  const T* dL_dvalues_;
  const T* value_;
  const int64_t* index_;
};

template <typename T>
void backward(const KnnProblem& problem, const Tensor& dL_dvalues, const Tensor& values, const Tensor& indices,
              Tensor& dL_dqueries, Tensor& dL_dbank) {
  const TopkBackward<T> pass(problem, dL_dqueries.size(0), static_cast<const T*>(dL_dvalues.const_data_ptr()),
                             static_cast<const T*>(values.const_data_ptr()),
                             static_cast<const int64_t*>(indices.const_data_ptr()));
  pass.queries(dL_dqueries);
  pass.bank(dL_dbank);
}

std::tuple<Tensor, Tensor> knn_topk_backward_cpu(const Tensor& dL_dvalues, const Tensor& queries, const Tensor& bank,
                                                 const Tensor& values, const Tensor& indices, const MetricName& metric,
                                                 std::optional<Tensor> query_offsets, bool unit_bank) {
  check_knn_topk_backward(dL_dvalues, queries, bank, values, indices, metric, query_offsets);
  const KnnTensors input = make_knn_problem("knn_topk_backward", queries, bank, values.size(1), metric, query_offsets,
                                            std::nullopt, false, unit_bank);
  const Tensor upstream = torch::stable::contiguous(dL_dvalues), score = torch::stable::contiguous(values),
               index = torch::stable::contiguous(indices);
  const int64_t* row = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t i = 0; i < index.numel(); ++i)
    if (row[i] < -1 || row[i] >= input.problem.bank_rows)
      fail("knn_topk_backward", "indices must lie in [-1, ", input.problem.bank_rows, "), got ", row[i]);
  Tensor dL_dqueries = torch::stable::new_empty(queries, queries.sizes(), queries.scalar_type());
  Tensor dL_dbank = torch::stable::new_empty(bank, bank.sizes(), bank.scalar_type());
  if (compute_type(queries, bank) == ScalarType::Double)
    backward<double>(input.problem, upstream, score, index, dL_dqueries, dL_dbank);
  else
    backward<float>(input.problem, upstream, score, index, dL_dqueries, dL_dbank);
  return {dL_dqueries, dL_dbank};
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) {
  m.impl("knn_topk", TORCH_BOX(&dgcl::knn_topk_cpu));
  m.impl("knn_topk_backward", TORCH_BOX(&dgcl::knn_topk_backward_cpu));
}
