// Runs CUDA C++ on the CPU, to test kernels without a GPU. csrc/cuda/compat.cuh includes this in place of CUDA's headers
// unless nvcc compiles it. Every thread of a block is a fiber. Every collective (barrier, shuffle, vote, matrix product)
// is a meeting of its participants. Anything else does not compile: wmma, clusters, fast-math intrinsics. Link with
// tests/kernels/emulator/runtime/*.cpp, as tests/kernels/emulator/build.py does.
#pragma once
#include "cuda_emulator/async_copy.h"
#include "cuda_emulator/atomics.h"
#include "cuda_emulator/collectives.h"
#include "cuda_emulator/half.h"
#include "cuda_emulator/language.h"
#include "cuda_emulator/launch.h"
#include "cuda_emulator/math.h"
#include "cuda_emulator/runtime_api.h"
#include "cuda_emulator/scheduler.h"
#include "cuda_emulator/shared_memory.h"
#include "cuda_emulator/tensor_core.h"
#include "cuda_emulator/vector_access.h"
