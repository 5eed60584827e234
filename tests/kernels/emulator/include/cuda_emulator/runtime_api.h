// The part of the CUDA runtime that launchers use.
#pragma once
#include <cstddef>

#include "shared_memory.h"

using cudaStream_t = struct cuda_emulator_stream*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

// A launch that CUDA would reject throws here, so only Options::refuse_launch leaves an error to read.
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

// Stands in for PyTorch's device guard and current stream (csrc/cuda/binding.h).
extern "C" void* cuda_emulator_enter_device();
extern "C" void cuda_emulator_leave_device();

namespace cuda_emulator {

// The current stream while a device guard is alive. Without a guard it is an error.
cudaStream_t current_stream();

cudaError_t allow_dynamic_shared(const void* kernel, int bytes);
int blocks_per_multiprocessor(int threads, size_t dynamic_bytes);

}  // namespace cuda_emulator

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  return ::cuda_emulator::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), value);
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...), int threads,
                                                          size_t dynamic_bytes) {
  *blocks = ::cuda_emulator::blocks_per_multiprocessor(threads, dynamic_bytes);
  return cudaSuccess;
}
