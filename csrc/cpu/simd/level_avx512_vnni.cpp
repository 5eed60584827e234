#include "levels.h"
#if defined(__x86_64__)
#include <immintrin.h>

namespace dgcl::avx512_vnni {
Quantized quantize(const float* x, int64_t dim, int8_t* out) {
  const auto mask_at = [&](int64_t d) {
    return static_cast<__mmask16>(dim - d >= 16 ? 0xffffu : (1u << (dim - d)) - 1u);
  };
  __m512 most = _mm512_setzero_ps();
  for (int64_t d = 0; d < dim; d += 16)
    most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(mask_at(d), x + d)));
  const float largest = _mm512_reduce_max_ps(most);
  // A smaller value would make the reciprocal infinite. Such a row becomes 0, with its length as the error.
  const bool zero = !(largest > 1e-30f);
  const float scale = zero ? 0.0f : largest / 127.0f, inverse = zero ? 0.0f : 127.0f / largest;
  const __m512 factor = _mm512_set1_ps(inverse);
  __m512 squares = _mm512_setzero_ps();
  __m512i sums = _mm512_setzero_si512();
  for (int64_t d = 0; d < dim; d += 16) {
    const __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask_at(d), x + d), factor);
    const __m512i q =
        _mm512_max_epi32(_mm512_min_epi32(_mm512_cvtps_epi32(y), _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
    const __m512 off = _mm512_sub_ps(y, _mm512_cvtepi32_ps(q));
    squares = _mm512_fmadd_ps(off, off, squares);
    sums = _mm512_add_epi32(sums, q);
    const int64_t left = (dim - d + 3) / 4 * 4;
    _mm512_mask_cvtepi32_storeu_epi8(out + d, static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u), q);
  }
  // In units of the scale. y has two roundings of at most 127 * 2^-24 each, the scale has one, and the sum of squares a
  // few.
  const float length = static_cast<float>(dim);
  const float square = _mm512_reduce_add_ps(squares) * (1.0f + length * 0x1p-23f);
  const __m128 root = _mm_sqrt_ss(_mm_set_ss(square)), root_dim = _mm_sqrt_ss(_mm_set_ss(length));
  const float error = scale * (1.001f * _mm_cvtss_f32(root) + 4e-5f * _mm_cvtss_f32(root_dim));
  return {scale, error, _mm512_reduce_add_epi32(sums)};
}

namespace {

constexpr int kRows = 6, kRegisters = kPanelRows / 16;

// Not the intrinsic, for which GCC 12 copies accumulators back and forth: two moves per product.
inline void add_products(__m512i& sum, __m512i queries, __m512i bank) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(queries), "v"(bank));
}

// All trip counts except the number of steps are constants, so that the sums stay in registers.
void score_tile(const uint8_t* queries, const int8_t* panel, const int32_t* start, const float* scale,
                const float* bias, int64_t steps, const float* query_scale, const float* threshold, float* scores,
                uint64_t* passes) {
  __m512i sum[kRows][kRegisters];
#pragma GCC unroll 8
  for (int c = 0; c < kRegisters; ++c) {
    const __m512i first = _mm512_loadu_si512(start + 16 * c);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r][c] = first;
  }
  for (int64_t s = 0; s < steps; ++s, queries += 4 * kRows, panel += 4 * kPanelRows) {
    __m512i b[kRegisters];
#pragma GCC unroll 8
    for (int c = 0; c < kRegisters; ++c) b[c] = _mm512_loadu_si512(panel + 64 * c);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      __builtin_memcpy(&four, queries + 4 * r, 4);
      const __m512i q = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (int c = 0; c < kRegisters; ++c) add_products(sum[r][c], q, b[c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m512 factor = _mm512_set1_ps(query_scale[r]), limit = _mm512_set1_ps(threshold[r]);
    uint64_t bits = 0;
#pragma GCC unroll 8
    for (int c = 0; c < kRegisters; ++c) {
      const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][c]), _mm512_loadu_ps(scale + 16 * c));
      const __m512 score = _mm512_fmadd_ps(product, factor, _mm512_loadu_ps(bias + 16 * c));
      _mm512_storeu_ps(scores + r * kPanelRows + 16 * c, score);
      bits |= static_cast<uint64_t>(_mm512_cmp_ps_mask(score, limit, _CMP_GE_OQ)) << (16 * c);
    }
    passes[r] = bits;
  }
}

}  // namespace

const Int8Primitives int8_table = {kRows, 1, &quantize, &score_tile, nullptr, nullptr};

}  // namespace dgcl::avx512_vnni
#endif
