#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../math/density.h"
#include "../ops/checks.h"
#include "knn/search.h"

namespace dgcl {
namespace {

// out [outputs][M]. Each row is a density over its own scales: all of them together, or one each.
template <typename T>
void density(const KnnProblem& problem, const std::vector<std::vector<int64_t>>& outputs, int64_t num_queries, T* out) {
  const int64_t k = problem.k, rows = static_cast<int64_t>(outputs.size());
  std::vector<T> full(static_cast<size_t>(rows * k), T(0));  // weights for k neighbours
  for (int64_t o = 0; o < rows; ++o)
    scale_weights(outputs[o].data(), static_cast<int64_t>(outputs[o].size()), k, full.data() + o * k);
  std::fill_n(out, rows * num_queries, T(0));
  knn_search<T>(problem, [&](int64_t query, const Neighbour<T>* neighbours, int64_t count) {
    if (count <= 0) {
      for (int64_t o = 0; o < rows; ++o)
        out[o * num_queries + query] = count < 0 ? std::numeric_limits<T>::quiet_NaN() : T(0);
      return;
    }
    std::vector<T> scores(static_cast<size_t>(count)), fewer(count < k ? static_cast<size_t>(count) : 0);
    for (int64_t r = 0; r < count; ++r) scores[static_cast<size_t>(r)] = neighbours[r].score;
    for (int64_t o = 0; o < rows; ++o) {
      const T* weights = full.data() + o * k;
      if (count < k) {
        scale_weights(outputs[o].data(), static_cast<int64_t>(outputs[o].size()), count, fewer.data());
        weights = fewer.data();
      }
      out[o * num_queries + query] = weighted_sum(weights, scores.data(), count);
    }
  });
}

Tensor knn_density_cpu(const Tensor& queries, const Tensor& bank, std::vector<int64_t> scales, const MetricName& metric,
                       std::optional<Tensor> query_offsets, std::optional<Tensor> bank_counts, bool exclude_self,
                       bool per_scale, bool unit_bank) {
  check_knn_density(queries, bank, scales, metric, query_offsets, bank_counts);
  const int64_t largest = *std::max_element(scales.begin(), scales.end());
  // A query never has more neighbours than the bank has rows. Weights of a clamped scale are computed per query.
  const int64_t k = std::min(largest, std::max<int64_t>(1, bank.size(bank.dim() - 2)));
  const KnnTensors input =
      make_knn_problem("knn_density", queries, bank, k, metric, query_offsets, bank_counts, exclude_self, unit_bank);
  std::vector<std::vector<int64_t>> outputs;
  if (per_scale)
    for (int64_t scale : scales) outputs.push_back({scale});
  else
    outputs.push_back(scales);
  const ScalarType type = compute_type(queries, bank);
  const int64_t m = queries.size(0);
  Tensor out = per_scale ? torch::stable::new_empty(queries, {static_cast<int64_t>(scales.size()), m}, type)
                         : torch::stable::new_empty(queries, {m}, type);
  if (type == ScalarType::Double)
    density<double>(input.problem, outputs, m, static_cast<double*>(out.mutable_data_ptr()));
  else
    density<float>(input.problem, outputs, m, static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("knn_density", TORCH_BOX(&dgcl::knn_density_cpu)); }
