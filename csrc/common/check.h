// Rejects bad input. An error names op, argument, rule and value.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace dgcl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename List>
std::string list_of(const List& values) {
  std::ostringstream out;
  const char* separator = "[";
  for (int64_t value : values) {
    out << separator << value;
    separator = ", ";
  }
  out << (values.size() ? "]" : "[]");
  return out.str();
}

inline std::string shape_of(const Tensor& t) { return list_of(t.sizes()); }

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "an unsupported dtype";
  }
}

inline bool is_supported_float(ScalarType dtype) {
  return dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// float64 if any input is float64, else float32.
template <typename... Tensors>
ScalarType compute_type(const Tensors&... tensors) {
  return ((tensors.scalar_type() == ScalarType::Double) || ...) ? ScalarType::Double : ScalarType::Float;
}

// PyTorch accepts None for a tensor argument that is not optional.
inline void check_given(const char* op, const char* name, const Tensor& t) {
  if (!t.defined()) fail(op, name, " must be a tensor, got None");
}

inline void check_float(const char* op, const char* name, const Tensor& t) {
  check_given(op, name, t);
  if (!is_supported_float(t.scalar_type()))
    fail(op, name, " must be float64, float32, float16 or bfloat16, got ", dtype_name(t.scalar_type()));
}

inline std::string device_of(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return (t.is_cuda() ? "cuda:" : "another device, number ") + std::to_string(t.get_device_index());
}

// `first` is the tensor that sets the operator's device.
inline void check_same_device(const char* op, const char* name, const Tensor& t, const char* first_name,
                              const Tensor& first) {
  if (t.is_cpu() != first.is_cpu() || t.is_cuda() != first.is_cuda() ||
      t.get_device_index() != first.get_device_index())
    fail(op, name, " must be on the same device as ", first_name, ", ", device_of(first), ", got ", device_of(t));
}

// In `shape`, -1 stands for any size.
inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape,
                        const char* rule) {
  check_given(op, name, t);
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (int64_t want : shape) {
    if (!same) break;
    same = want < 0 || t.size(i) == want;
    ++i;
  }
  if (!same) fail(op, name, " must have shape ", rule, ", got ", shape_of(t));
}

inline void check_int64(const char* op, const char* name, const Tensor& t) {
  check_given(op, name, t);
  if (t.scalar_type() != ScalarType::Long) fail(op, name, " must be int64, got ", dtype_name(t.scalar_type()));
}

inline void check_int64_vector(const char* op, const char* name, const Tensor& t, int64_t length, const char* rule) {
  check_int64(op, name, t);
  check_shape(op, name, t, {length}, rule);
}

}  // namespace dgcl
