// AVX-512 (F, BW, DQ, VL) registers.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace dgcl::avx512 {

struct VecFloat {
  using Scalar = float;
  static constexpr int width = 16, tile_rows = 12, tile_registers = 2, sums = 24;
  static constexpr bool filter_pays = true;
  __m512 v;
  static VecFloat zero() { return {_mm512_setzero_ps()}; }
  static VecFloat broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static VecFloat load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static VecFloat load_partial(const float* p, int64_t n) {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p)};
  }
  static void store(float* p, VecFloat x) { _mm512_storeu_ps(p, x.v); }
  static VecFloat add(VecFloat a, VecFloat b) { return {_mm512_add_ps(a.v, b.v)}; }
  static VecFloat sub(VecFloat a, VecFloat b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static VecFloat div(VecFloat a, VecFloat b) { return {_mm512_div_ps(a.v, b.v)}; }
  static VecFloat sqrt(VecFloat a) { return {_mm512_sqrt_ps(a.v)}; }
  static VecFloat fma(VecFloat a, VecFloat b, VecFloat c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static VecFloat multiply_add(VecFloat a, VecFloat b, VecFloat c) { return fma(a, b, c); }
  static uint32_t at_least(VecFloat a, VecFloat b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
  static VecFloat min(VecFloat a, VecFloat b) { return {_mm512_min_ps(a.v, b.v)}; }
  static VecFloat max(VecFloat a, VecFloat b) { return {_mm512_max_ps(a.v, b.v)}; }
  static void sum_lanes4(const VecFloat* x, float* out) {
    __m128 a = quarter_sum(x[0]), b = quarter_sum(x[1]), c = quarter_sum(x[2]), d = quarter_sum(x[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d)));
  }
  static __m128 quarter_sum(VecFloat x) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  static void compress(VecFloat x, uint32_t bits, float* out) {
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), x.v));
  }
  static void compress_index(const int32_t* x, uint32_t bits, int32_t* out) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), _mm512_loadu_si512(x)));
  }
  static VecFloat load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
};

struct VecDouble {
  using Scalar = double;
  static constexpr int width = 8, tile_rows = 12, tile_registers = 2, sums = 24;
  static constexpr bool filter_pays = false;
  __m512d v;
  static VecDouble zero() { return {_mm512_setzero_pd()}; }
  static VecDouble broadcast(double x) { return {_mm512_set1_pd(x)}; }
  static VecDouble load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static VecDouble load_partial(const double* p, int64_t n) {
    return {_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1u), p)};
  }
  static void store(double* p, VecDouble x) { _mm512_storeu_pd(p, x.v); }
  static VecDouble add(VecDouble a, VecDouble b) { return {_mm512_add_pd(a.v, b.v)}; }
  static VecDouble sub(VecDouble a, VecDouble b) { return {_mm512_sub_pd(a.v, b.v)}; }
  static VecDouble div(VecDouble a, VecDouble b) { return {_mm512_div_pd(a.v, b.v)}; }
  static VecDouble sqrt(VecDouble a) { return {_mm512_sqrt_pd(a.v)}; }
  static VecDouble fma(VecDouble a, VecDouble b, VecDouble c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  static VecDouble multiply_add(VecDouble a, VecDouble b, VecDouble c) { return fma(a, b, c); }
  static uint32_t at_least(VecDouble a, VecDouble b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_GE_OQ); }
  static VecDouble min(VecDouble a, VecDouble b) { return {_mm512_min_pd(a.v, b.v)}; }
  static VecDouble max(VecDouble a, VecDouble b) { return {_mm512_max_pd(a.v, b.v)}; }
  static void sum_lanes4(const VecDouble* x, double* out) {
    _mm_storeu_pd(out, _mm_hadd_pd(quarter_sum(x[0]), quarter_sum(x[1])));
    _mm_storeu_pd(out + 2, _mm_hadd_pd(quarter_sum(x[2]), quarter_sum(x[3])));
  }
  static __m128d quarter_sum(VecDouble x) {
    const __m256d half = _mm256_add_pd(_mm512_castpd512_pd256(x.v), _mm512_extractf64x4_pd(x.v, 1));
    return _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
  }
  static void compress(VecDouble x, uint32_t bits, double* out) {
    _mm512_storeu_pd(out, _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), x.v));
  }
  static void compress_index(const int32_t* x, uint32_t bits, int32_t* out) {
    const __m256i row = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_maskz_compress_epi32(static_cast<__mmask8>(bits), row));
  }
  static VecDouble load_half(const uint16_t* p) {
    return {_mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
};

}  // namespace dgcl::avx512
