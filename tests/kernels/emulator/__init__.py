"""CUDA's execution model on the CPU, for the kernels of csrc/cuda.

include/, runtime/   what compat.cuh includes instead of CUDA's headers; fibers, collectives, shared memory behind it
build.py, module.cpp the kernels, bindings and runtime as a Python module, one per mode: plain, address, thread
replace.py           the emulated kernels in the place of the CPU's, for tests
cases*.py            small inputs that reach every edge, for every operator
worker.py, run.py    cases in processes of their own, under a sanitizer
faults*.py           faults planted in copies of the kernels, which the cases have to find
self_test*           small kernels with faults: the tool's test of itself
"""
