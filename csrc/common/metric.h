// The similarity of two rows: larger is nearer. l2 is the negative Euclidean distance.
#pragma once
#include <torch/csrc/stable/stableivalue_conversions.h>

#include "check.h"

namespace dgcl {

enum class Metric { cosine, dot, l2 };

inline Metric parse_metric(const char* op, const std::string& name) {
  if (name == "cosine") return Metric::cosine;
  if (name == "dot") return Metric::dot;
  if (name == "l2") return Metric::l2;
  fail(op, "metric must be cosine, dot or l2, got ", name);
}

// An operator's `str metric` argument. Operators take this instead of std::string: in the headers of PyTorch 2.10 to
// 2.13 the conversion to std::string leaks a copy of every argument.
struct MetricName {
  std::string text;
  operator const std::string&() const { return text; }
};

}  // namespace dgcl

// The callee owns the handle and must free it.
template <>
struct torch::stable::detail::ToImpl<dgcl::MetricName> {
  static dgcl::MetricName call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    const char* data = nullptr;
    size_t length = 0;
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    dgcl::MetricName name{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return name;
  }
};
