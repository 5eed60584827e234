// AVX2 + FMA + F16C registers.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace dgcl::avx2 {

struct VecFloat {
  using Scalar = float;
  static constexpr int width = 8, tile_rows = 6, tile_registers = 2;
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
  static uint32_t not_less(VecFloat a, VecFloat b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NLT_UQ)));
  }
  static VecFloat load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
};

struct VecDouble {
  using Scalar = double;
  static constexpr int width = 4, tile_rows = 6, tile_registers = 2;
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
  static uint32_t not_less(VecDouble a, VecDouble b) {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_NLT_UQ)));
  }
  static VecDouble load_half(const uint16_t* p) {
    return {_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
  }
};

}  // namespace dgcl::avx2
