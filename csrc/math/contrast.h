// The contrastive loss of one anchor against its key (index 0) and its negatives (1..N), on logits z.
//
//   m = max_j z_j               lse = m + log(sum_j exp(z_j - m) + eps)             loss = lse - z_0
//   p_j = exp(z_j - lse)        dloss/dz_j = p_j - [j = 0]
//
// The authors' code adds eps = 1e-6 to the sum, after shifting the logits by m. It treats m as a constant in the
// gradient, and so does this formula: the p_j sum to 1 - eps / (sum + eps). With eps = 0 this is the log-softmax.
//
// z_j = <a, b_j> / temperature with unit rows a, b_j. unit_row_backward (unit_row.h) takes gradients back to raw rows.
// Everything is in double, because a float's rounding error in lse would show in every p_j. A compensated sum of float
// exponentials would change the loss's bits: each exponential is off by about 2^-24, by another amount in every math
// library. So GPUs with slow float64 pay for one exponential per logit in each direction. Per step,
// `benchmarks/gpu_step.py` estimates 0.36 of 15 ms on an RTX 3090, 0.15 of 8 ms on an RTX 4090, and 0.02 ms on an A100.
#pragma once
#include <cmath>
#include <limits>

#include "host_device.h"

namespace dgcl {

// A running log-sum-exp: the maximum so far and the sum of exp(z - maximum). NaN stays NaN.
struct LogSumExp {
  double maximum = -std::numeric_limits<double>::infinity();
  double sum = 0;

  // Adds `count` times exp(z).
  DGCL_HOST_DEVICE void add(double z, double count = 1) {
    // One exponential in either case, so that the lanes of a warp do not diverge.
    const double smaller = z == maximum ? 1 : std::exp(-std::fabs(z - maximum));
    if (z > maximum) {
      sum = sum * smaller + count;
      maximum = z;
    } else {
      sum += count * smaller;
    }
  }
  // Adds the values of another sum. The order of the two sums does not change the bits.
  DGCL_HOST_DEVICE void merge(const LogSumExp& other) { add(other.maximum, other.sum); }
  DGCL_HOST_DEVICE double value(double eps) const { return maximum + std::log(sum + eps); }
};

// z of a product <a, b>. `inverse` is 1 / temperature if that is exact, else 0: then quotient and product round the same
// number, and the product is cheaper.
DGCL_HOST_DEVICE inline double contrast_logit(double product, double temperature, double inverse) {
  return inverse != 0 ? product * inverse : product / temperature;
}

DGCL_HOST_DEVICE inline double contrast_loss(double key_logit, double lse) { return lse - key_logit; }

// p_j
DGCL_HOST_DEVICE inline double contrast_probability(double logit, double lse) { return std::exp(logit - lse); }

// The factor of p_j - [j = 0]. The loss is the mean over `anchors` anchors, and 1 / temperature is dz_j / d<a, b_j>.
DGCL_HOST_DEVICE inline double contrast_gradient_scale(double dL_dloss, double anchors, double temperature) {
  return dL_dloss / (anchors * temperature);
}

}  // namespace dgcl
