// Products of 8-bit integers, for the filter of the search: four times as many per step as with floats.
#pragma once
#include <cstdint>

namespace dgcl {

// x[d] is about scale * q[d], with integers q in [-127, 127].
struct Quantized {
  float scale;  // 0 if all q are 0
  float error;  // an upper bound of the length |x - scale * q|, if the scale is not 0
  int32_t sum;  // sum of all q
};

struct Int8Primitives {
  int tile_rows;
  int together;  // steps of a query side by side
  // `out` has dim elements, and zeros up to the next multiple of 4.
  Quantized (*quantize)(const float* x, int64_t dim, int8_t* out);
  // scores[r][c] = bias[c] + query_scale[r] scale[c] (start[c] + sum_d queries[r, d] panel[d, c]), with an exact sum.
  // passes[r] has bit c set if scores[r][c] >= threshold[r].
  // queries [steps / together][tile_rows][together][4] unsigned, where the last group of steps may be smaller.
  // panel [steps][kPanelRows][4].
  void (*score_tile)(const uint8_t* queries, const int8_t* panel, const int32_t* start, const float* scale,
                     const float* bias, int64_t steps, const float* query_scale, const float* threshold, float* scores,
                     uint64_t* passes);
  // The calling thread calls these before its first tile and after its last one. Null if there is nothing to do.
  void (*begin_tiles)(int64_t steps);
  void (*end_tiles)();
};

constexpr int kPanelRows = 64;            // bank rows side by side
constexpr int64_t kInt8MaxDim = 1 << 15;  // sums of products up to 255 * 127 stay in 32 bits

}  // namespace dgcl
