"""CUDA's execution model on the CPU, for the kernels of csrc/cuda."""
