// The numeric leaf functions, compiled once per instruction set. Everything else is ordinary C++.
//
// Each level has a file of its own, compiled with that level's flags. These files include no templates of the standard
// library. Otherwise the linker could keep the AVX-512 copy of an inline function for all files.
#pragma once
#include <cstdint>

namespace dgcl {

// T is float or double. Rows have `dim` elements.
template <typename T>
struct Primitives {
  int tile_rows;     // queries per tile
  int tile_columns;  // bank rows per tile, one packed panel; at most 64, the bits of a mask
  bool filter_pays;  // whether score_tile is faster than canonical scores of everything
  // The canonical dot product (csrc/math/canonical.h), with the same bits on every level.
  T (*dot)(const T* a, const T* b, int64_t dim);
  // The canonical dot product and squared distance of four rows with four others, out [4][4], or with one, out [4].
  void (*dot_4x4)(const T* const* a, const T* const* b, int64_t dim, T* out);
  void (*dot_4x1)(const T* const* a, const T* const* b, int64_t dim, T* out);
  void (*squared_distance_4x4)(const T* const* a, const T* const* b, int64_t dim, T* out);
  void (*squared_distance_4x1)(const T* const* a, const T* const* b, int64_t dim, T* out);
  // Tiles of 16 x 16 distances (distance_tile.h), with the same bits on every level.
  void (*add_squared_distances)(const T* left, const T* right, int64_t dim, T* squares);
  void (*take_roots)(T* x, int64_t count);
  // out = x / divisor, IEEE division.
  void (*divide)(const T* x, T divisor, int64_t dim, T* out);
  // scores[r][c] = bias[c] + sum_d queries[d][r] * panel[d][c], rounded in any order. passes[r] has bit c set if
  // scores[r][c] >= threshold[r]; a NaN never passes. queries [dim][tile_rows], panel [dim][tile_columns].
  void (*score_tile)(const T* queries, const T* panel, const T* bias, int64_t dim, const T* threshold, T* scores,
                     uint64_t* passes);
  // Bit c is set if scores[c] >= threshold. `count` is at most 64; scores are readable up to the next multiple of 16.
  uint64_t (*passing)(const T* scores, int64_t count, T threshold);
  // Selection by score (selection.h).
  int64_t (*append)(const T* scores, const int32_t* index, uint64_t passes, T* out, int32_t* out_index);
  int64_t (*drop_below)(T* scores, int32_t* index, int64_t n, T cut);
  T (*reached_by)(const T* scores, int64_t n, int64_t k, int64_t most);
  // y += alpha * x
  void (*axpy)(T alpha, const T* x, int64_t dim, T* y);
  // Exact conversions from half precision.
  void (*from_half)(const uint16_t* x, int64_t dim, T* out);
  void (*from_bfloat16)(const uint16_t* x, int64_t dim, T* out);
};

// The level in use: the widest of this processor, or the one that DGCL_OPS_CPU_CAPABILITY names (portable | avx2 |
// avx512 | avx512_vnni | avx512_amx). The variable is read once. An unknown or unavailable level is an error.
const char* cpu_level();

template <typename T>
const Primitives<T>& primitives();

struct Int8Primitives;  // int8_tile.h

// Null on levels without products of 8-bit integers.
const Int8Primitives* int8_primitives();

constexpr int kDistanceRows = 16;  // on each side of a tile of distances
constexpr int kMaxTileRows = 16;
constexpr int kMaxTileColumns = 64;
constexpr int kMaxWidth = 16;  // elements in the widest register

}  // namespace dgcl
