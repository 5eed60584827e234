// Squared distances of 16 x 16 rows from their differences: nothing cancels, and equal rows give 0.
//
// Each pair has one sum over increasing elements with fused multiply-add, whatever the width of a register. So every
// level computes the same bits. Swapping the two rows of a pair keeps the bits, too.
#pragma once
#include "primitives.h"

namespace dgcl {

// squares[i][j] += sum_d (left[d][i] - right[d][j])^2. left, right [dim][16], squares [16][16].
template <typename V>
void add_squared_distances(const typename V::Scalar* left, const typename V::Scalar* right, int64_t dim,
                           typename V::Scalar* squares) {
  // R x C sums stay in registers. AVX-512 has 32 registers and subtracts a broadcast element straight from memory, so
  // one register of columns suffices.
  constexpr bool is_avx512 = sizeof(V) == 64;
  constexpr int W = V::width, R = is_avx512 ? 16 : 4, C = is_avx512 ? 1 : 2;
  static_assert(kDistanceRows % R == 0 && kDistanceRows % (C * W) == 0);
  for (int column = 0; column < kDistanceRows; column += C * W)
    for (int row = 0; row < kDistanceRows; row += R) {
      const typename V::Scalar *x = left + row, *y = right + column;
      V sum[R][C];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) sum[r][c] = V::zero();
      for (int64_t d = 0; d < dim; ++d, x += kDistanceRows, y += kDistanceRows) {
        V b[C];
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) b[c] = V::load(y + c * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const V a = V::broadcast(x[r]);
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) {
            const V difference = V::sub(b[c], a);
            sum[r][c] = V::fma(difference, difference, sum[r][c]);
          }
        }
      }
      typename V::Scalar* to = squares + row * kDistanceRows + column;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) {
          typename V::Scalar* out = to + r * kDistanceRows + c * W;
          V::store(out, V::add(V::load(out), sum[r][c]));
        }
    }
}

// x = sqrt(x), IEEE. `count` is a multiple of 16.
template <typename V>
void take_roots(typename V::Scalar* x, int64_t count) {
  for (int64_t i = 0; i < count; i += V::width) V::store(x + i, V::sqrt(V::load(x + i)));
}

}  // namespace dgcl
