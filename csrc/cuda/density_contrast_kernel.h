#pragma once
#include <cstdint>

#include "rows.h"

namespace dgcl {

// What forward and backward share. The rows of a group have slots: anchors [0, A), negatives [A, A + N), and the key at
// A + N.
struct ContrastProblem {
  RowView anchors;                 // [G, A, E]
  RowView keys;                    // [G, 1, E]
  RowView negatives;               // [G, N, E]
  const int64_t* anchor_counts;    // [G], clamped to [0, A]; nullptr: all
  const int64_t* negative_counts;  // [G], clamped to [0, N]; nullptr: all
  int64_t groups, num_anchors, num_negatives, dim;
  double temperature, inverse_temperature;  // contrast_logit (math/contrast.h)
  bool is_double;                           // compute in double, else in float
  void* unit_rows;                          // scratch [G, A + N + 1, unit_pitch], float or double, 16-byte aligned
  int unit_pitch;                           // contrast_unit_pitch(dim)

  constexpr int64_t slots() const { return num_anchors + num_negatives + 1; }
};

// Unit rows are a multiple of 16 bytes long, for float and double.
constexpr int64_t contrast_unit_pitch(int64_t dim) { return (dim + 3) / 4 * 4; }
constexpr int64_t kMostContrastColumns = 1 << 30;  // columns are counted in int

struct DensityContrastArguments {
  ContrastProblem problem;
  double eps;
  double* terms;  // scratch [G, A], the loss of each anchor
  void* loss;     // [G], float or double
  void* lse;      // [G, A], the same type
};

int launch_density_contrast(const DensityContrastArguments& arguments, void* stream);

}  // namespace dgcl
