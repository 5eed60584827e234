// Selection by score: counts, keeps and drops scores with the indices of their bank rows. The code only compares
// scores, so nothing is rounded.
#pragma once
#include <cstdint>

namespace dgcl {

template <typename V>
concept Compresses = requires { &V::compress_index; };

template <typename V>
inline uint32_t marks_at_least(const typename V::Scalar* scores, int64_t left, V limit) {
  const uint32_t bits = V::at_least(V::load(scores), limit);
  return left >= V::width ? bits : bits & ((1u << left) - 1u);
}

// Copies, in order, the scores that `bits` marks, and their indices. `out` may be the start of `scores`. Writes up to
// V::width elements; the marked ones come first.
template <typename V>
inline int keep_marked(const typename V::Scalar* scores, const int32_t* index, uint32_t bits, typename V::Scalar* out,
                       int32_t* out_index) {
  if constexpr (Compresses<V>) {
    V::compress(V::load(scores), bits, out);
    V::compress_index(index, bits, out_index);
    return __builtin_popcount(bits);
  } else {
    int n = 0;
    for (; bits; bits &= bits - 1, ++n) {
      const int i = __builtin_ctz(bits);
      out[n] = scores[i];
      out_index[n] = index[i];
    }
    return n;
  }
}

// Appends the scores of a tile's row that `passes` marks. Writes up to V::width elements more than it returns.
template <typename V>
int64_t append(const typename V::Scalar* scores, const int32_t* index, uint64_t passes, typename V::Scalar* out,
               int32_t* out_index) {
  int64_t n = 0;
  for (int c = 0; passes; c += V::width, passes >>= V::width) {
    const uint32_t bits = static_cast<uint32_t>(passes & ((uint64_t(1) << V::width) - 1));
    if (Compresses<V> || bits) n += keep_marked<V>(scores + c, index + c, bits, out + n, out_index + n);
  }
  return n;
}

// Keeps, in their order, the scores of at least `cut`, and returns their number. Both buffers must be readable and
// writable up to the next multiple of V::width.
template <typename V>
int64_t drop_below(typename V::Scalar* scores, int32_t* index, int64_t n, typename V::Scalar cut) {
  const V limit = V::broadcast(cut);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += V::width) {
    const uint32_t bits = marks_at_least<V>(scores + i, n - i, limit);
    kept += keep_marked<V>(scores + i, index + i, bits, scores + kept, index + kept);
  }
  return kept;
}

// Returns a value that at least k of the n scores reach, and at most `most` of them where ties and outliers allow. It
// halves the range of the scores and does not sort them. +infinity counts as the largest finite score. If a score is
// -infinity, the result is -infinity. 1 <= k <= n, no NaN.
template <typename V>
typename V::Scalar reached_by(const typename V::Scalar* scores, int64_t n, int64_t k, int64_t most) {
  using T = typename V::Scalar;
  constexpr T kLargest = sizeof(T) == sizeof(float) ? T(3.4028234663852886e38) : T(1.7976931348623157e308);
  T low = kLargest, high = -kLargest;
  const V cap = V::broadcast(kLargest);
  V least = cap, most_seen = V::broadcast(-kLargest);
  int64_t i = 0;
  for (; i + V::width <= n; i += V::width) {
    const V x = V::min(V::load(scores + i), cap);
    least = V::min(x, least);
    most_seen = V::max(x, most_seen);
  }
  T lanes[2][V::width];
  V::store(lanes[0], least);
  V::store(lanes[1], most_seen);
  for (int l = 0; l < V::width; ++l) {
    low = lanes[0][l] < low ? lanes[0][l] : low;
    high = lanes[1][l] > high ? lanes[1][l] : high;
  }
  for (; i < n; ++i) {
    low = scores[i] < low ? scores[i] : low;
    high = scores[i] > high && scores[i] <= kLargest ? scores[i] : high;
  }
  if (n <= most) return low;
  for (int halvings = 0; halvings < 40; ++halvings) {
    const T middle = low / 2 + high / 2;
    if (!(middle > low && middle < high)) break;
    const V limit = V::broadcast(middle);
    int64_t count = 0;
    for (int64_t j = 0; j < n; j += V::width) count += __builtin_popcount(marks_at_least<V>(scores + j, n - j, limit));
    if (count >= k) {
      low = middle;
      if (count <= most) break;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace dgcl
