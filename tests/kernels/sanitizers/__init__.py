"""The CPU kernels under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer."""
