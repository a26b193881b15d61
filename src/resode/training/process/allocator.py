"""The memory allocator of the process."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameter numbers of mallopt(3)
# Thresholds in bytes of trimming and of mappings. glibc's own grow with what is freed, at most to these
# limits, and are fixed once they have been set.
_KEEPING, _LIMITS = ((1 << 31) - 1, 1 << 30), (64 << 20, 32 << 20)


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[bool]:
    """Context manager: glibc keeps freed memory, up to 2 GiB, and returns it to the system at the end.

    A training step frees all its activations. If glibc returns the pages, the next step faults each of them
    in again: on a virtual machine a tenth of a step. The setting holds for the whole process.

    Yields:
        Whether it was set: False on systems without glibc's `mallopt`.
    """
    library = _glibc()
    try:
        yield library is not None and _set_thresholds(library, *_KEEPING)
    finally:
        if library is not None:
            _set_thresholds(library, *_LIMITS)
            library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of the process, if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _set_thresholds(library: ctypes.CDLL, trim: int, mapping: int) -> bool:
    return bool(library.mallopt(_MMAP_THRESHOLD, mapping)) and bool(library.mallopt(_TRIM_THRESHOLD, trim))
