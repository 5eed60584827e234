// Where the CUDA kernels are registered; Python defines the schemas (dgcl_ops/ops/). The tests build the CUDA side a
// second time, over a CPU stand-in for the device, under a namespace of its own and for CPU tensors.
#pragma once
#include <torch/csrc/stable/library.h>

#ifndef DGCL_NAMESPACE
#define DGCL_NAMESPACE dgcl_ops
#define DGCL_CUDA_KEY CUDA
#endif
