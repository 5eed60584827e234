"""Shared by the emulator, the sanitizers and the fuzzer: building, workers, planted faults, the command line."""
