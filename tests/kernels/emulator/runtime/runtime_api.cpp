#include <algorithm>
#include <utility>

#include "state.h"

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
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

namespace {

int refusal = cudaSuccess;
int guards = 0;
char stream_of_device;

}  // namespace

cudaError_t cudaGetLastError() { return static_cast<cudaError_t>(std::exchange(refusal, cudaSuccess)); }

void* cuda_emulator_enter_device() {
  ++guards;
  return &stream_of_device;
}
void cuda_emulator_leave_device() { --guards; }

namespace cuda_emulator {

cudaStream_t current_stream() {
  if (guards == 0) fail("there is no device guard");
  return reinterpret_cast<cudaStream_t>(&stream_of_device);
}

bool refuse_launch() {
  const int error = std::exchange(options().refuse_launch, cudaSuccess);
  if (error != cudaSuccess) refusal = error;
  return error != cudaSuccess;
}

int blocks_per_multiprocessor(int threads, size_t dynamic_bytes) {
  const int by_threads = 1536 / std::max(threads, 1);
  const int by_memory = static_cast<int>(100 * 1024 / (dynamic_bytes + 1024));
  return std::min({by_threads, by_memory, 16});
}

}  // namespace cuda_emulator
