// dgcl_ops._C. Importing it registers the kernels; each file of csrc/cpu and csrc/cuda registers its own. Python
// defines the schemas (dgcl_ops/ops/), because a build without this extension needs them too.
#include <Python.h>

#include <exception>
#include <string>

#include "cpu/simd/primitives.h"

#ifndef DGCL_BUILD_INFO
#define DGCL_BUILD_INFO "unknown build"
#endif

namespace dgcl {
namespace {

PyObject* cpu_capability(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(std::string(cpu_level()).c_str());
  } catch (const std::exception& error) {  // DGCL_OPS_CPU_CAPABILITY names a level that this processor lacks
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* build_info(PyObject*, PyObject*) { return PyUnicode_FromString(DGCL_BUILD_INFO); }

}  // namespace
}  // namespace dgcl

PyMODINIT_FUNC PyInit__C(void) {
  static PyMethodDef functions[] = {
      {"cpu_capability", dgcl::cpu_capability, METH_NOARGS, "The instruction set in use."},
      {"build_info", dgcl::build_info, METH_NOARGS, "How the extension was built."},
      {nullptr, nullptr, 0, nullptr},
  };
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
