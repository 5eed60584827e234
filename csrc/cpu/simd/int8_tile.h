// Products of 8-bit integers, for the filter of knn_search: four times as many a step as with floats.
#pragma once
#include <cstdint>

namespace dgcl {

// x[d] is about scale * q[d], with integers q in [-127, 127].
struct Quantized {
  float scale;  // 0: all q are 0
  float error;  // an upper bound of |x - scale * q|, the Euclidean length, where the scale is not 0
  int32_t sum;  // of the q
};

struct Int8Primitives {
  int tile_rows;
  // `out` has dim elements, and zeros up to the next multiple of 4.
  Quantized (*quantize)(const float* x, int64_t dim, int8_t* out);
  // scores[r][c] = bias[c] + query_scale[r] scale[c] (start[c] + sum_d queries[r, d] panel[d, c]), the sum exact;
  // passes[r] has bit c set where scores[r][c] >= threshold[r].
  // queries [steps][tile_rows][4] unsigned, panel [steps][kPanelRows][4].
  void (*score_tile)(const uint8_t* queries, const int8_t* panel, const int32_t* start, const float* scale,
                     const float* bias, int64_t steps, const float* query_scale, const float* threshold, float* scores,
                     uint64_t* passes);
};

constexpr int kPanelRows = 64;            // bank rows side by side
constexpr int64_t kInt8MaxDim = 1 << 15;  // of 255 * 127 each, sums stay in 32 bits

}  // namespace dgcl
