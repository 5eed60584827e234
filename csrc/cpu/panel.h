// Packs rows side by side, so that one step over `dim` reads contiguous memory.
#pragma once
#include <cstdint>

namespace dgcl {

// out[d * columns + c] = rows[c][d]. Missing rows (c >= count) become zero.
template <typename T>
void pack_columns(const T* const* rows, int64_t count, int64_t dim, int columns, T* out) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T))));
  int64_t c = 0;
  for (; c + 4 <= count; c += 4) {
    const T* r0 = rows[c];
    const T* r1 = rows[c + 1];
    const T* r2 = rows[c + 2];
    const T* r3 = rows[c + 3];
    T* to = out + c;
    int64_t d = 0;
    // float64 is copied by single elements. Without AVX, shuffles of four doubles would go through memory.
    for (; sizeof(T) < 8 && d + 4 <= dim; d += 4, to += 4 * columns) {
      const Four a = *reinterpret_cast<const Four*>(r0 + d), b = *reinterpret_cast<const Four*>(r1 + d);
      const Four e = *reinterpret_cast<const Four*>(r2 + d), f = *reinterpret_cast<const Four*>(r3 + d);
      const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                 ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four ef_low = __builtin_shufflevector(e, f, 0, 4, 1, 5),
                 ef_high = __builtin_shufflevector(e, f, 2, 6, 3, 7);
      *reinterpret_cast<Four*>(to) = __builtin_shufflevector(ab_low, ef_low, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(to + columns) = __builtin_shufflevector(ab_low, ef_low, 2, 3, 6, 7);
      *reinterpret_cast<Four*>(to + 2 * columns) = __builtin_shufflevector(ab_high, ef_high, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(to + 3 * columns) = __builtin_shufflevector(ab_high, ef_high, 2, 3, 6, 7);
    }
    for (; d < dim; ++d, to += columns) {
      to[0] = r0[d];
      to[1] = r1[d];
      to[2] = r2[d];
      to[3] = r3[d];
    }
  }
  for (; c < columns; ++c)
    for (int64_t d = 0; d < dim; ++d) out[d * columns + c] = c < count ? rows[c][d] : T(0);
}

}  // namespace dgcl
