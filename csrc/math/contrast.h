// The contrastive loss of one anchor against its key (index 0) and its negatives (1..N), on logits z.
//
//   lse = log sum_j exp(z_j)        p_0 = exp(z_0 - lse)        loss = -log(p_0 + eps)       (eps = 0: lse - z_0)
//   dloss/dz_j = p_0 / (p_0 + eps) * (exp(z_j - lse) - [j = 0])
//
// z_j = <a, b_j> / temperature with unit rows a, b_j; gradients go back to raw rows by unit_row_backward (unit_row.h).
#pragma once
#include <cmath>
#include <limits>

namespace dgcl {

// Running log-sum-exp: the maximum seen and the sum of exp(z - maximum). NaN stays NaN.
struct LogSumExp {
  double maximum = -std::numeric_limits<double>::infinity();
  double sum = 0;

  void add(double z) {
    if (z > maximum) {
      sum = sum * std::exp(maximum - z) + 1;
      maximum = z;
    } else if (z == z) {
      sum += z == maximum ? 1 : std::exp(z - maximum);
    } else {
      sum = z;
    }
  }
  double value() const { return maximum + std::log(sum); }
};

inline double contrast_loss(double key_logit, double lse, double eps) {
  return eps == 0 ? lse - key_logit : -std::log(std::exp(key_logit - lse) + eps);
}

// The factor p_0 / (p_0 + eps) of the gradient.
inline double contrast_gradient_factor(double key_logit, double lse, double eps) {
  if (eps == 0) return 1;
  const double p = std::exp(key_logit - lse);
  return p / (p + eps);
}

}  // namespace dgcl
