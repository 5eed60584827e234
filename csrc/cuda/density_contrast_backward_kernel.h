#pragma once
#include "density_contrast_kernel.h"

namespace dgcl {

// Rows of one gradient, contiguous. `unit` receives the gradients for the unit rows, in the compute type; it may be
// `raw` itself where that has the same dtype.
struct GradientRows {
  void* unit = nullptr;
  void* raw = nullptr;
  Dtype dtype = Dtype::float32;  // of raw
};

struct DensityContrastBackwardArguments {
  ContrastProblem problem;
  const void* dL_dloss;    // [G], float or double
  const void* lse;         // [G, A], the same
  bool all_gradients;      // keys and negatives as well
  double* at_keys;         // scratch [G, A]: dL / d<anchor, key>
  GradientRows anchors;    // [G, A, E]
  GradientRows negatives;  // [G, N, E]; unused without all_gradients
  GradientRows keys;       // [G, E]; unused without all_gradients
};

int launch_density_contrast_backward(const DensityContrastBackwardArguments& arguments, void* stream);

}  // namespace dgcl
