"""The memory allocator of the process."""

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameter numbers of mallopt(3)


@functools.cache
def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, up to 2 GiB, instead of returning it to the system.

    A training step frees all its activations. If glibc returns the pages, the next step faults each of them
    in again: on a virtual machine a tenth of a step. The setting holds for the whole process.

    Returns:
        Whether it was set: False on systems without glibc's `mallopt`.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
