// The contrastive loss of one anchor against its key (index 0) and its negatives (1..N), on logits z.
//
//   m = max_j z_j               lse = m + log(sum_j exp(z_j - m) + eps)             loss = lse - z_0
//   p_j = exp(z_j - lse)        dloss/dz_j = p_j - [j = 0]
//
// The published program adds eps = 1e-6 to the sum, after shifting the logits by m. It treats m as a constant in the
// gradient, and so does this formula: the p_j sum to 1 - eps / (sum + eps). With eps = 0 it is the log-softmax.
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
  DGCL_HOST_DEVICE double value(double eps) const { return maximum + std::log(sum + eps); }
};

DGCL_HOST_DEVICE inline double contrast_loss(double key_logit, double lse) { return lse - key_logit; }

// p_j
DGCL_HOST_DEVICE inline double contrast_probability(double logit, double lse) { return std::exp(logit - lse); }

// Factor of p_j - [j = 0]. The loss is the mean over `anchors` anchors and receives the gradient dL_dloss; the
// temperature comes from dz_j / d<a, b_j>.
DGCL_HOST_DEVICE inline double contrast_gradient_scale(double dL_dloss, double anchors, double temperature) {
  return dL_dloss / (anchors * temperature);
}

}  // namespace dgcl
