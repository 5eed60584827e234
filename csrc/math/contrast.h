// The contrastive loss of one anchor against its key (index 0) and its negatives (1..N), on logits z.
//
//   lse = log sum_j exp(z_j)        p_j = exp(z_j - lse)        loss = -log(p_0 + eps)       (eps = 0: lse - z_0)
//   dloss/dz_j = p_0 / (p_0 + eps) * (p_j - [j = 0])
//
// z_j = <a, b_j> / temperature with unit rows a, b_j; gradients go back to raw rows by unit_row_backward (unit_row.h).
// In double everywhere: an lse that is wrong by a float's rounding would show in every p_j.
#pragma once
#include <cmath>
#include <limits>

#include "host_device.h"

namespace dgcl {

// Running log-sum-exp: the maximum seen and the sum of exp(z - maximum). NaN stays NaN.
struct LogSumExp {
  double maximum = -std::numeric_limits<double>::infinity();
  double sum = 0;

  // As if `count` values of equal size z, summing to `count * exp(z)`, had been added.
  DGCL_HOST_DEVICE void add(double z, double count = 1) {
    // One exponential whichever is larger, so that the lanes of a warp do not take turns.
    const double smaller = z == maximum ? 1 : std::exp(-std::fabs(z - maximum));
    if (z > maximum) {
      sum = sum * smaller + count;
      maximum = z;
    } else {
      sum += count * smaller;
    }
  }
  // The values that another sum has seen; in either order the same bits.
  DGCL_HOST_DEVICE void merge(const LogSumExp& other) { add(other.maximum, other.sum); }
  DGCL_HOST_DEVICE double value() const { return maximum + std::log(sum); }
};

DGCL_HOST_DEVICE inline double contrast_loss(double key_logit, double lse, double eps) {
  return eps == 0 ? lse - key_logit : -std::log(std::exp(key_logit - lse) + eps);
}

// p_j
DGCL_HOST_DEVICE inline double contrast_probability(double logit, double lse) { return std::exp(logit - lse); }

// What p_j - [j = 0] of an anchor is multiplied with, where the loss is the mean over `anchors` anchors and receives
// the gradient dL_dloss; the temperature is that of dz_j / d<a, b_j>.
DGCL_HOST_DEVICE inline double contrast_gradient_scale(double dL_dloss, double key_logit, double lse, double eps,
                                                       double anchors, double temperature) {
  double factor = 1;
  if (eps != 0) {
    const double p = contrast_probability(key_logit, lse);
    factor = p / (p + eps);
  }
  return dL_dloss * factor / (anchors * temperature);
}

}  // namespace dgcl
