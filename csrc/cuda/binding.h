// What all CUDA bindings share: current device and stream, plain arguments, errors.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "../common/check.h"
#include "../common/platform.h"
#include "../common/registration.h"
#include "rows.h"

namespace dgcl {

#ifdef DGCL_EMULATED_DEVICE
extern "C" void* cuda_emulator_enter_device();
extern "C" void cuda_emulator_leave_device();
extern "C" int64_t cuda_emulator_red_zone(const void* begin);
#endif

// The device's current stream. libtorch_cuda has the function, but a CPU build of PyTorch lacks that library, so the
// function cannot be linked. A CUDA tensor proves that the library is loaded. (Stream::nativeHandle() needs PyTorch
// 2.13.)
inline void* current_cuda_stream(int32_t device) {
  static const auto get = [] {
    void* function = loaded_function("torch_cuda", "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<AOTITorchError (*)(int32_t, void**)>(function);
  }();
  if (!get)
    fail("dgcl_ops", "cannot read the current CUDA stream: libtorch_cuda is not loaded, or lacks ",
         "aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return stream;
}

// Makes the tensor's device current within its scope, and exposes that device's current stream.
class OnDeviceOf {
 public:
#ifdef DGCL_EMULATED_DEVICE  // CPU tensors; the emulator checks that guard and stream are used
  explicit OnDeviceOf(const Tensor&) : stream_(cuda_emulator_enter_device()) {}
  ~OnDeviceOf() { cuda_emulator_leave_device(); }
  OnDeviceOf(const OnDeviceOf&) = delete;
  void* stream() const { return stream_; }

 private:
  void* stream_;
#else
  explicit OnDeviceOf(const Tensor& t)
      : guard_(t.get_device_index()), stream_(current_cuda_stream(t.get_device_index())) {}
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
#endif
};

// CUDA's error codes for a driver or device that the kernels were not built for: the driver is older than the runtime,
// there is no code for the device, or the driver does not know the PTX.
constexpr bool is_incompatible(int error) { return error == 35 || error == 209 || error == 222; }

// A launch reports the last error of this thread, which earlier work may have left behind.
inline void check_launch(const char* op, int error) {
  if (error == 0) return;
  const char* advice = is_incompatible(error)
                           ? "; run `python -m dgcl_ops.doctor` to see what does not fit"
                           : "; an earlier CUDA call may have caused it, CUDA_LAUNCH_BLOCKING=1 shows which one";
  fail(op, "CUDA launch failed: ", cuda_error_text(error), " (error ", error, ")", advice);
}

inline Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Float:
      return Dtype::float32;
    default:
      return Dtype::float64;
  }
}

// `t` [N, D] or [C, N, D]. Uses the tensor in place if its last dimension is contiguous, else a copy. `keep` owns the
// memory.
inline RowView row_view(const Tensor& t, Tensor& keep) {
  keep = t;
  if (t.numel() > 0 && t.size(t.dim() - 1) > 1 && t.stride(t.dim() - 1) != 1) keep = torch::stable::contiguous(t);
  return {keep.const_data_ptr(), keep.stride(keep.dim() - 2), keep.dim() == 3 ? keep.stride(0) : 0, dtype_of(keep)};
}

// The data of an optional int64 vector, or nullptr. `keep` owns the memory.
inline const int64_t* values_of(const std::optional<Tensor>& t, Tensor& keep) {
  if (!t) return nullptr;
  keep = torch::stable::contiguous(*t);
  return static_cast<const int64_t*>(keep.const_data_ptr());
}

}  // namespace dgcl
