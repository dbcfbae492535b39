"""Keeping memory that tensors have given back, for the next tensors.

The C library of Linux gives large blocks back to the system as soon as they are freed, and the system fills
fresh ones with zeros, page by page, when they are first written. In a network that makes and drops a tensor
for every layer this costs as much as a good part of the arithmetic.
"""

import ctypes
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2
"""What ``malloc.h`` calls M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD."""


def keep_freed_memory() -> bool:
    """Have this process keep freed memory for its next tensors; it then stays as large as it has ever been.

    Made for programs that compute and end, or compute again and again: every verb of ``van`` that runs a
    network does it. Returns whether the C library could be told (glibc can).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    told = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 64 << 20)]
    return all(told)
