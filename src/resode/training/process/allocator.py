"""How this process gets its memory."""

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, up to 2 GiB, in place of giving it back; whether it now does.

    A training step frees all its activations; glibc gives them back, and the next step pays for every page of
    them anew (on a virtual machine a tenth of a step). It concerns the whole process, and glibc alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
