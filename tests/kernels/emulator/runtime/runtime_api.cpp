#include <algorithm>
#include <utility>

#include "state.h"

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    default:
      return "operation not supported";
  }
}

namespace {

int current_device = 0;

}  // namespace

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* begin, int value, size_t bytes, cudaStream_t stream) {
  cuda_emulator::count_call("cudaMemsetAsync");
  if (stream != cuda_emulator::current_stream()) cuda_emulator::fail("cudaMemsetAsync: not in the current stream");
  for (size_t i = 0; i < bytes; ++i)  // not memset, which would stop at a red zone
    static_cast<volatile unsigned char*>(begin)[i] = static_cast<unsigned char>(value);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cuda_emulator::count_call("cudaDeviceGetAttribute");
  if (device != current_device) return cudaErrorInvalidValue;
  if (attribute == cudaDevAttrMultiProcessorCount)
    *value = cuda_emulator::options().multiprocessors;
  else if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin)
    *value = static_cast<int>(cuda_emulator::shared_optin());
  else
    return cudaErrorInvalidValue;
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

int64_t cuda_emulator_red_zone(const void* begin) {
  constexpr int64_t kBytes = 128;
  if (begin) cuda_emulator::poison(begin, kBytes);
  return kBytes;
}

namespace cuda_emulator {

std::map<std::string, uint64_t>& runtime_calls() {
  static std::map<std::string, uint64_t> calls;
  return calls;
}

void count_call(const char* function) { ++runtime_calls()[function]; }

void next_device() {
  ++current_device;
  forget_allowed();
}

void reset() {
  next_device();
  passed_barriers().clear();
  runtime_calls().clear();
}

cudaStream_t current_stream() {
  if (guards == 0) fail("there is no device guard");
  return reinterpret_cast<cudaStream_t>(&stream_of_device);
}

bool refuse_launch() {
  const int error = std::exchange(options().refuse_launch, cudaSuccess);
  if (error != cudaSuccess) refusal = error;
  return error != cudaSuccess;
}

size_t shared_optin() { return static_cast<size_t>(options().shared_kilobytes - 1) * 1024; }

int blocks_per_multiprocessor(int threads, size_t dynamic_bytes) {
  constexpr int kRegisters = 128;  // of a thread, which the emulator does not know; the filter's
  const int by_registers = 65536 / (kRegisters * std::max(threads, 1));
  const int by_memory = static_cast<int>(options().shared_kilobytes * size_t{1024} / (dynamic_bytes + 1024));
  return std::min({by_registers, by_memory, 16});
}

}  // namespace cuda_emulator
