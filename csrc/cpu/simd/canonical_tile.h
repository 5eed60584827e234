// Canonical sums (math/canonical.h) of several rows with several others, so that each load serves several pairs. The 32
// sums of each pair and their tree are the same as for a single pair, so the bits are the same.
#pragma once
#include "../../math/canonical.h"

namespace dgcl {

// Adds all elements of registers [first, first + G) of the 32 lanes to sum[i][r * C + c].
template <typename V, int R, int C, int G, typename Combine>
inline __attribute__((always_inline)) void add_lanes(const typename V::Scalar* const* a,
                                                     const typename V::Scalar* const* b, int64_t dim, int first,
                                                     V (*sum)[R * C], Combine combine) {
  constexpr int W = V::width;
  V s[G][R * C];
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 16
    for (int n = 0; n < R * C; ++n) s[g][n] = V::zero();
  const auto step = [&](int g, const auto& load) __attribute__((always_inline)) {
    V y[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) y[c] = load(b[c]);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V x = load(a[r]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) s[g][r * C + c] = combine(s[g][r * C + c], x, y[c]);
    }
  };
  int64_t d = first * W;
  for (; d + G * W <= dim; d += kLanes)
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
      step(g, [&](const typename V::Scalar* p) __attribute__((always_inline)) { return V::load(p + d + g * W); });
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
    const int64_t left = dim - d - g * W;
    if (left >= W)
      step(g, [&](const typename V::Scalar* p) __attribute__((always_inline)) { return V::load(p + d + g * W); });
    else if (left > 0)
      step(g, [&](const typename V::Scalar* p)
                  __attribute__((always_inline)) { return V::load_partial(p + d + g * W, left); });
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 16
    for (int n = 0; n < R * C; ++n) sum[first + g][n] = s[g][n];
}

// out[r * C + c] = the canonical sum of rows a[r] and b[c].
template <typename V, int R, int C, typename Combine>
inline __attribute__((always_inline)) void canonical_tile(const typename V::Scalar* const* a,
                                                          const typename V::Scalar* const* b, int64_t dim,
                                                          typename V::Scalar* out, Combine combine) {
  static_assert(R * C % 4 == 0);
  constexpr int K = kLanes / V::width;
  constexpr int G =
      K * R * C <= V::sums ? K : (2 * R * C <= V::sums && K % 2 == 0 ? 2 : 1);  // as many as fit into registers
  V sum[K][R * C];
#pragma GCC unroll 16
  for (int first = 0; first < K; first += G) add_lanes<V, R, C, G>(a, b, dim, first, sum, combine);
#pragma GCC unroll 16
  for (int half = K / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i)
#pragma GCC unroll 16
      for (int n = 0; n < R * C; ++n) sum[i][n] = V::add(sum[i][n], sum[i + half][n]);
#pragma GCC unroll 16
  for (int n = 0; n < R * C; n += 4) V::sum_lanes4(sum[0] + n, out + n);
}

template <typename V, int R, int C>
void canonical_dots(const typename V::Scalar* const* a, const typename V::Scalar* const* b, int64_t dim,
                    typename V::Scalar* out) {
  canonical_tile<V, R, C>(a, b, dim, out, [](V sum, V x, V y) { return V::fma(x, y, sum); });
}

// |a - b|^2 from the differences: nothing cancels, and equal rows give 0.
template <typename V, int R, int C>
void canonical_squared_distances(const typename V::Scalar* const* a, const typename V::Scalar* const* b, int64_t dim,
                                 typename V::Scalar* out) {
  canonical_tile<V, R, C>(a, b, dim, out, [](V sum, V x, V y) {
    const V difference = V::sub(x, y);
    return V::fma(difference, difference, sum);
  });
}

}  // namespace dgcl
