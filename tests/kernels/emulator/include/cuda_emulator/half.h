// __half and __nv_bfloat16: storage and conversions, rounded to nearest even; NaNs become CUDA's one NaN, 0x7fff.
#pragma once
#include <bit>
#include <cstdint>

namespace cuda_emulator {

inline uint16_t round_to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline uint16_t round_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 2^16 and more
  if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);             // less than half the least denormal
  const bool denormal = magnitude < 0x38800000u;                               // 2^-14
  const uint32_t significand = denormal ? (magnitude & 0x7fffffu) | 0x800000u : magnitude - 0x38000000u;
  const uint32_t shift = denormal ? 126 - (magnitude >> 23) : 13;
  const uint32_t kept = significand >> shift, lost = significand & ((1u << shift) - 1), tie = 1u << (shift - 1);
  return static_cast<uint16_t>(sign | (kept + (lost > tie || (lost == tie && (kept & 1)))));  // carries up to infinity
}

}  // namespace cuda_emulator

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float value) : bits(cuda_emulator::round_to_half(value)) {}
};
struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : bits(cuda_emulator::round_to_bfloat16(value)) {}
};

inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(unsigned short bits) { return std::bit_cast<__half>(bits); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return std::bit_cast<__nv_bfloat16>(bits); }

inline float __bfloat162float(__nv_bfloat16 h) { return std::bit_cast<float>(static_cast<uint32_t>(h.bits) << 16); }

inline float __half2float(__half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023u;
  if (exponent == 0) {  // zero or denormal: mantissa times 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t widened = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | widened << 23 | mantissa << 13);
}

inline __half __float2half_rn(float value) { return __half(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
