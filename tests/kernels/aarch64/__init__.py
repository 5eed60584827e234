"""The CPU kernels compiled for aarch64, and their numeric functions under qemu."""
