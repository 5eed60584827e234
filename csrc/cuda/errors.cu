#include "compat.cuh"
#include "rows.h"

namespace dgcl {

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace dgcl
