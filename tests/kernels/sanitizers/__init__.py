"""The CPU kernels under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.

build.py             csrc/cpu and csrc/ops as setup.py compiles them, instrumented, one module per mode
cases.py             the emulator's cases, and those that only matter here: threads, poisoned surroundings, refusals
worker.py            cases in processes of their own, on a chosen instruction set (emulator/worker.py starts them)
faults.py            faults planted in copies of the kernels, which the sanitizers have to find
run.py               all of it (.ci/check_cpu_sanitizers)
"""
