"""The C library's heap: a freed buffer of some MiB stays with the process, for the next one.

As it comes, glibc's malloc gives such a buffer back to the kernel when it is freed, or when some
more are, and the kernel clears every page of the next one. A daemon that writes has one after the
other: what a request brings, what a transaction carries, what a frame is put together in.

Costs up to KEPT_BYTES of memory that is not used at the moment.
"""

import contextlib
import ctypes

KEPT_BYTES = 128 << 20  # as much as may be dirty (fs/filesystem.py): that comes and goes at once
LARGEST_BYTES = 32 << 20  # what is larger is mapped by itself; the most that mallopt(3) takes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3), malloc.h


def keep_buffers() -> None:
    """Keep freed memory from now on; another C library's heap is left as it is."""
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, LARGEST_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
