// AVX2 + FMA + F16C registers.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace dgcl::avx2 {

struct VecFloat {
  using Scalar = float;
  static constexpr int width = 8, tile_rows = 6, tile_registers = 2, sums = 12;
  static constexpr bool filter_pays = true;
  __m256 v;
  static VecFloat zero() { return {_mm256_setzero_ps()}; }
  static VecFloat broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static VecFloat load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static VecFloat load_partial(const float* p, int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane))};
  }
  static void store(float* p, VecFloat x) { _mm256_storeu_ps(p, x.v); }
  static VecFloat add(VecFloat a, VecFloat b) { return {_mm256_add_ps(a.v, b.v)}; }
  static VecFloat sub(VecFloat a, VecFloat b) { return {_mm256_sub_ps(a.v, b.v)}; }
  static VecFloat div(VecFloat a, VecFloat b) { return {_mm256_div_ps(a.v, b.v)}; }
  static VecFloat sqrt(VecFloat a) { return {_mm256_sqrt_ps(a.v)}; }
  static VecFloat fma(VecFloat a, VecFloat b, VecFloat c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static VecFloat multiply_add(VecFloat a, VecFloat b, VecFloat c) { return fma(a, b, c); }
  static uint32_t at_least(VecFloat a, VecFloat b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)));
  }
  static VecFloat min(VecFloat a, VecFloat b) { return {_mm256_min_ps(a.v, b.v)}; }
  static VecFloat max(VecFloat a, VecFloat b) { return {_mm256_max_ps(a.v, b.v)}; }
  static void sum_lanes4(const VecFloat* x, float* out) {
    __m128 a = half_sum(x[0]), b = half_sum(x[1]), c = half_sum(x[2]), d = half_sum(x[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d)));
  }
  static __m128 half_sum(VecFloat x) { return _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1)); }
  static VecFloat load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
};

struct VecDouble {
  using Scalar = double;
  static constexpr int width = 4, tile_rows = 6, tile_registers = 2, sums = 12;
  static constexpr bool filter_pays = true;
  __m256d v;
  static VecDouble zero() { return {_mm256_setzero_pd()}; }
  static VecDouble broadcast(double x) { return {_mm256_set1_pd(x)}; }
  static VecDouble load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static VecDouble load_partial(const double* p, int64_t n) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return {_mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), lane))};
  }
  static void store(double* p, VecDouble x) { _mm256_storeu_pd(p, x.v); }
  static VecDouble add(VecDouble a, VecDouble b) { return {_mm256_add_pd(a.v, b.v)}; }
  static VecDouble sub(VecDouble a, VecDouble b) { return {_mm256_sub_pd(a.v, b.v)}; }
  static VecDouble div(VecDouble a, VecDouble b) { return {_mm256_div_pd(a.v, b.v)}; }
  static VecDouble sqrt(VecDouble a) { return {_mm256_sqrt_pd(a.v)}; }
  static VecDouble fma(VecDouble a, VecDouble b, VecDouble c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  static VecDouble multiply_add(VecDouble a, VecDouble b, VecDouble c) { return fma(a, b, c); }
  static uint32_t at_least(VecDouble a, VecDouble b) {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_GE_OQ)));
  }
  static VecDouble min(VecDouble a, VecDouble b) { return {_mm256_min_pd(a.v, b.v)}; }
  static VecDouble max(VecDouble a, VecDouble b) { return {_mm256_max_pd(a.v, b.v)}; }
  static void sum_lanes4(const VecDouble* x, double* out) {
    _mm_storeu_pd(out, _mm_hadd_pd(half_sum(x[0]), half_sum(x[1])));
    _mm_storeu_pd(out + 2, _mm_hadd_pd(half_sum(x[2]), half_sum(x[3])));
  }
  static __m128d half_sum(VecDouble x) {
    return _mm_add_pd(_mm256_castpd256_pd128(x.v), _mm256_extractf128_pd(x.v, 1));
  }
  static VecDouble load_half(const uint16_t* p) {
    return {_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
  }
};

}  // namespace dgcl::avx2
