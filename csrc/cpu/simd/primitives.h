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
  int tile_rows;     // queries per tile
  int tile_columns;  // bank rows per tile (one packed panel); at most 64, so that a bit mask fits
  bool filter_pays;  // whether score_tile is faster than canonical scores of everything
  // The canonical dot product (csrc/math/canonical.h): the same bits on every level.
  T (*dot)(const T* a, const T* b, int64_t dim);
  // It, and the canonical squared distance, for four rows against four, out [4][4], and against one, out [4].
  void (*dot_4x4)(const T* const* a, const T* const* b, int64_t dim, T* out);
  void (*dot_4x1)(const T* const* a, const T* const* b, int64_t dim, T* out);
  void (*squared_distance_4x4)(const T* const* a, const T* const* b, int64_t dim, T* out);
  void (*squared_distance_4x1)(const T* const* a, const T* const* b, int64_t dim, T* out);
  // Tiles of 16 x 16 distances (distance_tile.h): the same bits on every level.
  void (*add_squared_distances)(const T* left, const T* right, int64_t dim, T* squares);
  void (*take_roots)(T* x, int64_t count);
  // out = x / divisor, IEEE division.
  void (*divide)(const T* x, T divisor, int64_t dim, T* out);
  // scores[r][c] = bias[c] + sum_d queries[d][r] * panel[d][c]  in any rounding order; passes[r] has bit c set where
  // scores[r][c] >= threshold[r], which no NaN is. queries [dim][tile_rows], panel [dim][tile_columns].
  void (*score_tile)(const T* queries, const T* panel, const T* bias, int64_t dim, const T* threshold, T* scores,
                     uint64_t* passes);
  // Bit c set where scores[c] >= threshold; `count` scores, at most 64, readable up to the next multiple of 16.
  uint64_t (*passing)(const T* scores, int64_t count, T threshold);
  // Selection among scores with indices (selection.h).
  int64_t (*append)(const T* scores, const int32_t* index, uint64_t passes, T* out, int32_t* out_index);
  int64_t (*drop_below)(T* scores, int32_t* index, int64_t n, T cut);
  T (*reached_by)(const T* scores, int64_t n, int64_t k, int64_t most);
  // y += alpha * x
  void (*axpy)(T alpha, const T* x, int64_t dim, T* y);
  // Widening of stored half precision; exact.
  void (*from_half)(const uint16_t* x, int64_t dim, T* out);
  void (*from_bfloat16)(const uint16_t* x, int64_t dim, T* out);
};

// The level in use: the widest this processor has, capped by DGCL_OPS_CPU_CAPABILITY (portable | avx2 | avx512 |
// avx512_vnni), read once. An unknown or unavailable name is an error, not a silent choice.
const char* cpu_level();

template <typename T>
const Primitives<T>& primitives();

struct Int8Primitives;  // int8_tile.h

// Those of levels with products of 8-bit integers, else null.
const Int8Primitives* int8_primitives();

constexpr int kDistanceRows = 16;  // along each side of a tile of distances
constexpr int kMaxTileRows = 16;
constexpr int kMaxTileColumns = 64;
constexpr int kMaxWidth = 16;  // elements of the widest register

}  // namespace dgcl
