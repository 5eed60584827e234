// The part of the CUDA runtime that launchers use.
#pragma once
#include <cstddef>
#include <cstdint>

#include "shared_memory.h"

using cudaStream_t = struct cuda_emulator_stream*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};

// A launch that CUDA would reject throws here, so only Options::refuse_launch leaves an error to read.
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
// Runs at once, as launches do.
cudaError_t cudaMemsetAsync(void* begin, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

// Stands in for PyTorch's device guard and current stream (csrc/cuda/binding.h).
extern "C" void* cuda_emulator_enter_device();
extern "C" void cuda_emulator_leave_device();
// The bytes of a red zone between two parts of one allocation. It begins at `begin`, unless that is null.
extern "C" int64_t cuda_emulator_red_zone(const void* begin);

namespace cuda_emulator {

// The current stream while a device guard is alive. Without a guard it is an error.
cudaStream_t current_stream();

// Counts a call of the runtime (runtime_calls() in scheduler.h).
void count_call(const char* function);

cudaError_t allow_dynamic_shared(const void* kernel, int bytes);
int blocks_per_multiprocessor(int threads, size_t dynamic_bytes);

}  // namespace cuda_emulator

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  return ::cuda_emulator::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), value);
}

// The emulator knows static arrays only when a kernel runs.
template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Parameters...)) {
  *attributes = {0};
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...), int threads,
                                                          size_t dynamic_bytes) {
  ::cuda_emulator::count_call("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  *blocks = ::cuda_emulator::blocks_per_multiprocessor(threads, dynamic_bytes);
  return cudaSuccess;
}
