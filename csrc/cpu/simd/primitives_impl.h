// The leaf functions, written once for a register type V. Each level's file instantiates them.
#pragma once
#include "../../math/canonical.h"
#include "canonical_tile.h"
#include "distance_tile.h"
#include "primitives.h"
#include "selection.h"

namespace dgcl {

template <typename V>
void divide(const typename V::Scalar* x, typename V::Scalar divisor, int64_t dim, typename V::Scalar* out) {
  const V denominator = V::broadcast(divisor);
  int64_t d = 0;
  for (; d + V::width <= dim; d += V::width) V::store(out + d, V::div(V::load(x + d), denominator));
  for (; d < dim; ++d) out[d] = x[d] / divisor;
}

template <typename V>
void axpy(typename V::Scalar alpha, const typename V::Scalar* x, int64_t dim, typename V::Scalar* y) {
  const V factor = V::broadcast(alpha);
  int64_t d = 0;
  for (; d + V::width <= dim; d += V::width) V::store(y + d, V::multiply_add(factor, V::load(x + d), V::load(y + d)));
  for (; d < dim; ++d) y[d] = alpha * x[d] + y[d];
}

// All trip counts except `dim` are constants, so that the sums stay in registers.
template <typename V>
void score_tile(const typename V::Scalar* queries, const typename V::Scalar* panel, const typename V::Scalar* bias,
                int64_t dim, const typename V::Scalar* threshold, typename V::Scalar* scores, uint64_t* passes) {
  constexpr int R = V::tile_rows, C = V::tile_registers, W = V::width;
  V sum[R][C];
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) {
    const V start = V::load(bias + c * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][c] = start;
  }
  for (int64_t d = 0; d < dim; ++d, queries += R, panel += C * W) {
    V b[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) b[c] = V::load(panel + c * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V q = V::broadcast(queries[r]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) sum[r][c] = V::multiply_add(q, b[c], sum[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const V limit = V::broadcast(threshold[r]);
    uint64_t bits = 0;
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      V::store(scores + r * C * W + c * W, sum[r][c]);
      bits |= static_cast<uint64_t>(V::at_least(sum[r][c], limit)) << (c * W);
    }
    passes[r] = bits;
  }
}

template <typename V>
uint64_t passing(const typename V::Scalar* scores, int64_t count, typename V::Scalar threshold) {
  const V limit = V::broadcast(threshold);
  uint64_t bits = 0;
  for (int64_t c = 0; c < count; c += V::width)
    bits |= static_cast<uint64_t>(marks_at_least<V>(scores + c, count - c, limit)) << c;
  return bits;
}

template <typename V>
void from_half(const uint16_t* x, int64_t dim, typename V::Scalar* out) {
  int64_t d = 0;
  for (; d + V::width <= dim; d += V::width) V::store(out + d, V::load_half(x + d));
  if (d < dim) {
    uint16_t tail[V::width] = {};
    typename V::Scalar wide[V::width];
    for (int64_t i = d; i < dim; ++i) tail[i - d] = x[i];
    V::store(wide, V::load_half(tail));
    for (int64_t i = d; i < dim; ++i) out[i] = wide[i - d];
  }
}

template <typename V>
void from_bfloat16(const uint16_t* x, int64_t dim, typename V::Scalar* out) {
  for (int64_t d = 0; d < dim; ++d) {
    const uint32_t bits = static_cast<uint32_t>(x[d]) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, 4);
    out[d] = static_cast<typename V::Scalar>(wide);
  }
}

template <typename V>
constexpr Primitives<typename V::Scalar> make_primitives() {
  static_assert(V::tile_rows <= kMaxTileRows && V::tile_registers * V::width <= kMaxTileColumns);
  static_assert(kLanes % V::width == 0 && V::width <= kMaxWidth);
  return {V::tile_rows,
          V::tile_registers * V::width,
          V::filter_pays,
          &canonical_dot<V>,
          &canonical_dots<V, 4, 4>,
          &canonical_dots<V, 4, 1>,
          &canonical_squared_distances<V, 4, 4>,
          &canonical_squared_distances<V, 4, 1>,
          &add_squared_distances<V>,
          &take_roots<V>,
          &divide<V>,
          &score_tile<V>,
          &passing<V>,
          &append<V>,
          &drop_below<V>,
          &reached_by<V>,
          &axpy<V>,
          &from_half<V>,
          &from_bfloat16<V>};
}

}  // namespace dgcl
