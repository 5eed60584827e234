"""Marks for tests that a build without the compiled extension cannot pass."""

import pytest

from dgcl_ops import backend_info

COMPILED = backend_info()["extension"] is not None
needs_extension = pytest.mark.skipif(not COMPILED, reason="needs the compiled extension")
needs_equal_bits = pytest.mark.skipif(
    not COMPILED, reason="plain PyTorch does not guarantee equal bits"
)
