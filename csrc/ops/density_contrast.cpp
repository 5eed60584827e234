#include <cmath>

#include "checks.h"

namespace dgcl {
namespace {

void check_temperature(const char* op, double temperature) {
  if (!(temperature > 0) || !std::isfinite(temperature))
    fail(op, "temperature must be positive and finite, got ", temperature);
}

void check_tensors(const char* op, const Tensor& anchors, const Tensor& keys, const Tensor& negatives,
                   const std::optional<Tensor>& anchor_counts, const std::optional<Tensor>& negative_counts) {
  check_float(op, "anchors", anchors);
  check_float(op, "keys", keys);
  check_float(op, "negatives", negatives);
  check_shape(op, "anchors", anchors, {-1, -1, -1}, "[G, A, E]");
  const int64_t groups = anchors.size(0), dim = anchors.size(2);
  check_shape(op, "keys", keys, {groups, dim}, "[G, E] with the anchors' G and E");
  check_shape(op, "negatives", negatives, {groups, -1, dim}, "[G, N, E] with the anchors' G and E");
  check_same_device(op, "keys", keys, "anchors", anchors);
  check_same_device(op, "negatives", negatives, "anchors", anchors);
  if (anchor_counts) {
    check_int64_vector(op, "anchor_counts", *anchor_counts, groups, "[G]");
    check_same_device(op, "anchor_counts", *anchor_counts, "anchors", anchors);
  }
  if (negative_counts) {
    check_int64_vector(op, "negative_counts", *negative_counts, groups, "[G]");
    check_same_device(op, "negative_counts", *negative_counts, "anchors", anchors);
  }
}

}  // namespace

void check_density_contrast(const Tensor& anchors, const Tensor& keys, const Tensor& negatives, double temperature,
                            const std::optional<Tensor>& anchor_counts, const std::optional<Tensor>& negative_counts,
                            double eps) {
  const char* op = "density_contrast";
  check_temperature(op, temperature);
  if (!(eps >= 0) || !std::isfinite(eps)) fail(op, "eps must be finite and at least 0, got ", eps);
  check_tensors(op, anchors, keys, negatives, anchor_counts, negative_counts);
}

void check_density_contrast_backward(const Tensor& dL_dloss, const Tensor& anchors, const Tensor& keys,
                                     const Tensor& negatives, const Tensor& lse, double temperature,
                                     const std::optional<Tensor>& anchor_counts,
                                     const std::optional<Tensor>& negative_counts) {
  const char* op = "density_contrast_backward";
  check_temperature(op, temperature);
  check_tensors(op, anchors, keys, negatives, anchor_counts, negative_counts);
  const ScalarType type = compute_type(anchors, keys, negatives);
  check_shape(op, "dL_dloss", dL_dloss, {anchors.size(0)}, "[G]");
  check_shape(op, "lse", lse, {anchors.size(0), anchors.size(1)}, "[G, A]");
  if (dL_dloss.scalar_type() != type)
    fail(op, "dL_dloss must be ", dtype_name(type), ", got ", dtype_name(dL_dloss.scalar_type()));
  if (lse.scalar_type() != type) fail(op, "lse must be ", dtype_name(type), ", got ", dtype_name(lse.scalar_type()));
  check_same_device(op, "dL_dloss", dL_dloss, "anchors", anchors);
  check_same_device(op, "lse", lse, "anchors", anchors);
}

}  // namespace dgcl
