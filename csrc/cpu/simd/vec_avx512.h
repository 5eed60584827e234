// AVX-512 (F, BW, DQ, VL) registers.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace dgcl::avx512 {

struct VecFloat {
  using Scalar = float;
  static constexpr int width = 16, tile_rows = 12, tile_registers = 2;
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
  static uint32_t not_less(VecFloat a, VecFloat b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ); }
  static VecFloat load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
};

struct VecDouble {
  using Scalar = double;
  static constexpr int width = 8, tile_rows = 12, tile_registers = 2;
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
  static uint32_t not_less(VecDouble a, VecDouble b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_NLT_UQ); }
  static VecDouble load_half(const uint16_t* p) {
    return {_mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
};

}  // namespace dgcl::avx512
