// The checks of shapes, dtypes and devices. They read metadata only. Each kernel calls its check in its first line. The
// contract of each operator is in dgcl_ops/ops/.
#pragma once
#include <optional>
#include <vector>

#include "../common/check.h"

namespace dgcl {

void check_random_bits(const Tensor& rng_state, int64_t count);

void check_partition_keys(const Tensor& labels, const Tensor& usable, const Tensor& bits, int64_t num_classes);

void check_finite_rows(const Tensor& maps, const std::optional<Tensor>& other_maps,
                       const std::optional<Tensor>& confidence);

void check_gather_rows(const Tensor& maps, const Tensor& pixels);

void check_gather_rows_backward(const Tensor& dL_drows, const Tensor& pixels, const std::vector<int64_t>& shape);

void check_knn_topk(const Tensor& queries, const Tensor& bank, int64_t k, const std::string& metric,
                    const std::optional<Tensor>& query_offsets, const std::optional<Tensor>& bank_counts);

void check_knn_topk_backward(const Tensor& dL_dvalues, const Tensor& queries, const Tensor& bank, const Tensor& values,
                             const Tensor& indices, const std::string& metric,
                             const std::optional<Tensor>& query_offsets);

void check_knn_density(const Tensor& queries, const Tensor& bank, const std::vector<int64_t>& scales,
                       const std::string& metric, const std::optional<Tensor>& query_offsets,
                       const std::optional<Tensor>& bank_counts);

void check_density_contrast(const Tensor& anchors, const Tensor& keys, const Tensor& negatives, double temperature,
                            const std::optional<Tensor>& anchor_counts, const std::optional<Tensor>& negative_counts,
                            double eps);

void check_density_contrast_backward(const Tensor& dL_dloss, const Tensor& anchors, const Tensor& keys,
                                     const Tensor& negatives, const Tensor& lse, double temperature,
                                     const std::optional<Tensor>& anchor_counts,
                                     const std::optional<Tensor>& negative_counts);

void check_leading_rows(const Tensor& pixels, const Tensor& pixel_counts, const Tensor& limits, int64_t size);

void check_draw_negatives(const Tensor& pixels, const Tensor& pixel_counts, const Tensor& bits);

void check_class_table(const Tensor& pixels, const Tensor& offsets, const std::optional<Tensor>& order, int64_t width);

void check_memory_push(const Tensor& bank_features, const Tensor& bank_projections, const Tensor& bank_density,
                       const Tensor& counts, const Tensor& heads, const Tensor& features, const Tensor& projections,
                       const Tensor& density, const Tensor& row_counts);

void check_sum_rows(const Tensor& rows, const std::optional<Tensor>& indices, const Tensor& row_counts);

void check_silhouette_sums(const Tensor& features, const Tensor& offsets, const std::optional<Tensor>& rows);

}  // namespace dgcl
