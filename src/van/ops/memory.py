"""Memory reuse: let the C allocator keep freed blocks instead of returning them to the operating system.

The C library of Linux returns large blocks to the system as soon as they are freed, and the system zeroes
fresh pages when they are first written. In a network that allocates and frees a tensor for every layer these
page faults cost a considerable share of the run time.
"""

import ctypes
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2
"""M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of ``malloc.h``."""


def enable_memory_reuse() -> bool:
    """Make this process keep freed memory for its next tensors.

    The resident size of the process then stays at its peak. It cannot be undone. Every ``van`` command that runs
    a network calls this; call it once at the start of programs that run a network repeatedly.

    Returns:
        Whether the C library accepted the settings: True on Linux with glibc, False elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    # no mmap for large blocks, never trim the heap, and grow it by 64 MiB at a time
    accepted = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 64 << 20)]
    return all(accepted)
