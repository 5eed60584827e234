// g++ compiles the formulas for the CPU and nvcc for the GPU, from the same text.
#pragma once

#if defined(__CUDACC__)
#define DGCL_HOST_DEVICE __host__ __device__
#else
#define DGCL_HOST_DEVICE
#endif
