// The few numeric leaf functions that exist once per instruction set. Everything else is ordinary C++.
//
// Each level lives in a file of its own that is compiled with that level's flags and includes no standard library
// templates: an inline function of the standard library compiled for AVX-512 could otherwise be the copy the linker
// keeps.
#pragma once
#include <cstdint>

namespace dgcl {

// T is float or double. Rows have `dim` elements.
template <typename T>
struct Primitives {
  const char* level;  // "avx512", "avx2", "portable"
  int tile_rows;      // queries per tile
  int tile_columns;   // bank rows per tile (one packed panel); at most 64, so that a bit mask fits
  // Canonical sums (csrc/math/canonical.h): the same bits on every level.
  T (*dot)(const T* a, const T* b, int64_t dim);
  T (*squared_distance)(const T* a, const T* b, int64_t dim);
  // Tiles of 16 x 16 distances (distance_tile.h): the same bits on every level.
  void (*add_squared_distances)(const T* left, const T* right, int64_t dim, T* squares);
  void (*take_roots)(T* x, int64_t count);
  // out = x / divisor, IEEE division.
  void (*divide)(const T* x, T divisor, int64_t dim, T* out);
  // scores[r][c] = bias[c] + sum_d queries[d][r] * panel[d][c]  in any rounding order; passes[r] has bit c set where
  // not (scores[r][c] < threshold[r]), so that NaN passes. queries [dim][tile_rows], panel [dim][tile_columns].
  void (*score_tile)(const T* queries, const T* panel, const T* bias, int64_t dim, const T* threshold, T* scores,
                     uint64_t* passes);
  // y += alpha * x
  void (*axpy)(T alpha, const T* x, int64_t dim, T* y);
  // Widening of stored half precision; exact.
  void (*from_half)(const uint16_t* x, int64_t dim, T* out);
  void (*from_bfloat16)(const uint16_t* x, int64_t dim, T* out);
};

// The level in use: the widest this processor has, capped by DGCL_OPS_CPU_CAPABILITY (portable | avx2 | avx512),
// read once. An unknown or unavailable name is an error, not a silent choice.
template <typename T>
const Primitives<T>& primitives();

constexpr int kPanelRows = 16;  // along each side of a tile of distances
constexpr int kMaxTileRows = 16;
constexpr int kMaxTileColumns = 64;

}  // namespace dgcl
