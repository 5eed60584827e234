// dgcl_ops._C: importing it registers the ops (each file of csrc/ops and csrc/cpu does so for itself).
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/simd/primitives.h"

#ifndef DGCL_BUILD_INFO
#define DGCL_BUILD_INFO "unknown build"
#endif

namespace dgcl {
namespace {

std::string cpu_capability() { return cpu_level(); }

std::string build_info() { return DGCL_BUILD_INFO; }

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_FRAGMENT(dgcl_ops, m) {
  m.def("cpu_capability() -> str");
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&dgcl::cpu_capability));
  m.impl("build_info", TORCH_BOX(&dgcl::build_info));
}

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
