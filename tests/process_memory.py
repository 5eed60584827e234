"""Two measures of this process's memory."""

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
    """Returns malloc()'s bytes in use: tensors and C++ objects, but not Python's small objects.

    The number is exact and does not depend on the system's pages. None without glibc.
    """
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, TypeError):  # another C library, or Windows
        return None
    mallinfo.restype = MallInfo
    info = mallinfo()
    return info.uordblks + info.hblkhd


def resident_bytes() -> int | None:
    """Returns the size of resident pages, including what malloc() keeps for reuse. None without Linux's /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
