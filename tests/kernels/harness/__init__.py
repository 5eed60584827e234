"""What the emulator, the sanitizers and the fuzzer share: building, workers, planted faults, the command line."""
