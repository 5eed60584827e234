"""The memory of this process, counted in two ways."""

import ctypes
import os
from pathlib import Path


class MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated_bytes() -> int | None:
    """Bytes of malloc() in use: exact, whatever the system does with its pages. None without glibc.

    They include tensors and all C++ objects, but not Python's small objects.
    """
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, TypeError):  # another C library; Windows
        return None
    ask.restype = MallInfo
    info = ask()
    return info.uordblks + info.hblkhd


def resident_bytes() -> int | None:
    """Whole pages, with what malloc() keeps for reuse. None without Linux's /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
