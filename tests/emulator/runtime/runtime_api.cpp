#include <algorithm>

#include "state.h"

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    default:
      return "operation not supported";
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0 || attribute != cudaDevAttrMultiProcessorCount) return cudaErrorInvalidValue;
  *value = cuda_emulator::options().multiprocessors;
  return cudaSuccess;
}

namespace cuda_emulator {

int blocks_per_multiprocessor(int threads, size_t dynamic_bytes) {
  const int by_threads = 1536 / std::max(threads, 1);
  const int by_memory = static_cast<int>(100 * 1024 / (dynamic_bytes + 1024));
  return std::min({by_threads, by_memory, 16});
}

}  // namespace cuda_emulator
