#include "levels.h"
#if defined(__x86_64__)
#include <immintrin.h>

namespace dgcl::avx512_amx {
namespace {

// A tile register holds 16 rows of 64 bytes. One instruction multiplies 16 queries by 16 bank rows, 16 steps at a time.
constexpr int kRows = 16, kSteps = 16, kRowBytes = 64;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Registers 0 to 3: sums. 4 and 5: queries and bank. 6 and 7: the same for the steps left over, steps % kSteps.
void begin_tiles(int64_t steps) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = kRows;
    config.row_bytes[i] = kRowBytes;
  }
  const int left = steps % kSteps ? static_cast<int>(steps % kSteps) : kSteps;
  config.row_bytes[6] = static_cast<uint16_t>(4 * left);
  config.rows[7] = static_cast<uint8_t>(left);
  // Not the intrinsic: GCC 12 takes it to read eight bytes, and omits the stores of the others.
  asm volatile("ldtilecfg %0" : : "m"(config));
}

void end_tiles() { _tile_release(); }

void score_tile(const uint8_t* queries, const int8_t* panel, const int32_t* start, const float* scale,
                const float* bias, int64_t steps, const float* query_scale, const float* threshold, float* scores,
                uint64_t* passes) {
  constexpr int64_t kPanelBytes = 4 * kPanelRows;
  // A distance of 0: all rows of a sum start with the same values.
  _tile_loadd(0, start, 0);
  _tile_loadd(1, start + 16, 0);
  _tile_loadd(2, start + 32, 0);
  _tile_loadd(3, start + 48, 0);
  int64_t s = 0;
  for (; s + kSteps <= steps; s += kSteps, queries += kRows * kRowBytes, panel += kSteps * kPanelBytes) {
    _tile_loadd(4, queries, kRowBytes);
    _tile_loadd(5, panel, kPanelBytes);
    _tile_dpbusd(0, 4, 5);
    _tile_loadd(5, panel + 64, kPanelBytes);
    _tile_dpbusd(1, 4, 5);
    _tile_loadd(5, panel + 128, kPanelBytes);
    _tile_dpbusd(2, 4, 5);
    _tile_loadd(5, panel + 192, kPanelBytes);
    _tile_dpbusd(3, 4, 5);
  }
  if (s < steps) {
    _tile_loadd(6, queries, 4 * (steps - s));
    _tile_loadd(7, panel, kPanelBytes);
    _tile_dpbusd(0, 6, 7);
    _tile_loadd(7, panel + 64, kPanelBytes);
    _tile_dpbusd(1, 6, 7);
    _tile_loadd(7, panel + 128, kPanelBytes);
    _tile_dpbusd(2, 6, 7);
    _tile_loadd(7, panel + 192, kPanelBytes);
    _tile_dpbusd(3, 6, 7);
  }
  // The sums lie where the scores will.
  _tile_stored(0, scores, kPanelBytes);
  _tile_stored(1, scores + 16, kPanelBytes);
  _tile_stored(2, scores + 32, kPanelBytes);
  _tile_stored(3, scores + 48, kPanelBytes);
  for (int r = 0; r < kRows; ++r, scores += kPanelRows) {
    const __m512 factor = _mm512_set1_ps(query_scale[r]), limit = _mm512_set1_ps(threshold[r]);
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int c = 0; c < kPanelRows; c += 16) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(scores + c));
      const __m512 product = _mm512_mul_ps(sum, _mm512_loadu_ps(scale + c));
      const __m512 score = _mm512_fmadd_ps(product, factor, _mm512_loadu_ps(bias + c));
      _mm512_storeu_ps(scores + c, score);
      bits |= static_cast<uint64_t>(_mm512_cmp_ps_mask(score, limit, _CMP_GE_OQ)) << c;
    }
    passes[r] = bits;
  }
}

}  // namespace

const Int8Primitives int8_table = {kRows, kSteps, &avx512_vnni::quantize, &score_tile, &begin_tiles, &end_tiles};

}  // namespace dgcl::avx512_amx
#endif
