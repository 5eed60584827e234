#pragma once
#include "density_contrast_kernel.h"

namespace dgcl {

// One gradient, contiguous. `unit` receives the gradient of the unit rows, in the compute type. It may be `raw` itself,
// if that has the same dtype.
struct GradientOut {
  void* unit = nullptr;
  void* raw = nullptr;
  Dtype dtype = Dtype::float32;  // of raw
};

struct DensityContrastBackwardArguments {
  ContrastProblem problem;
  const void* dL_dloss;   // [G], float or double
  const void* lse;        // [G, A], the same type
  bool needs_key_grad;    // also compute the gradients of keys and negatives
  double* at_keys;        // scratch [G, A], dL / d<anchor, key>
  GradientOut anchors;    // [G, A, E]
  GradientOut negatives;  // [G, N, E]; unused without needs_key_grad
  GradientOut keys;       // [G, E]; unused without needs_key_grad
};

int launch_density_contrast_backward(const DensityContrastBackwardArguments& arguments, void* stream);

}  // namespace dgcl
