// mma.m16n8k16 on float16, register layout of the PTX manual.
#pragma once
#include <cstdint>

#include "collectives.h"

namespace cuda_emulator {

void matrix_product(float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site);

}  // namespace cuda_emulator

namespace dgcl {

// Hardware guarantees neither the order of the sum nor its rounding, so the schedule's seed chooses both.
inline void mma_f16_16x8x16(float* d, const uint32_t* a, const uint32_t* b, const float* c,
                            const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::cuda_emulator::matrix_product(d, a, b, c, {"mma.sync", file, line});
}

}  // namespace dgcl
