// Formulas are compiled for the CPU by g++ and for the GPU by nvcc, from the same text.
#pragma once

#if defined(__CUDACC__)
#define DGCL_HOST_DEVICE __host__ __device__
#else
#define DGCL_HOST_DEVICE
#endif
