// Runs CUDA C++ on the CPU, to test kernels where there is no GPU. csrc/cuda/compat.cuh includes this in place of
// CUDA's headers when no nvcc is at work. Every thread of a block is a fiber; every collective (barrier, shuffle, vote,
// matrix product) is a meeting of those who take part. What is not here does not compile: wmma, clusters, fast-math
// intrinsics. Link with tests/kernels/emulator/runtime/*.cpp; tests/kernels/emulator/build.py does.
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
