// A pair of tables for each instruction set. The AVX files are empty on other processors.
#pragma once
#include "int8_tile.h"
#include "primitives.h"

#define DGCL_DECLARE_LEVEL(level)                    \
  namespace dgcl::level {                            \
  extern const Primitives<float> float_primitives;   \
  extern const Primitives<double> double_primitives; \
  }

DGCL_DECLARE_LEVEL(portable)
DGCL_DECLARE_LEVEL(avx2)
DGCL_DECLARE_LEVEL(avx512)

namespace dgcl::avx512_vnni {
Quantized quantize(const float* x, int64_t dim, int8_t* out);
extern const Int8Primitives int8_table;
}  // namespace dgcl::avx512_vnni

namespace dgcl::avx512_amx {
extern const Int8Primitives int8_table;
}

#undef DGCL_DECLARE_LEVEL
