// The namespace and dispatch key of the CUDA kernels. Python defines the schemas (dgcl_ops/ops/). The tests build the
// same files for an emulated device, in another namespace and for CPU tensors.
#pragma once
#include <torch/csrc/stable/library.h>

#ifndef DGCL_NAMESPACE
#define DGCL_NAMESPACE dgcl_ops
#define DGCL_CUDA_KEY CUDA
#endif
