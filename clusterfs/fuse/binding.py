"""pyfuse3 with the native completion under it; the only place that imports either.

The native module must be in the global symbol scope before pyfuse3 is loaded: then the dynamic
linker binds pyfuse3's calls of fuse_session_new and a few more to it. Modules of this package say
`from clusterfs.fuse.binding import native, pyfuse3`.
"""

import os
import sys


def _load_native() -> None:
    assert "pyfuse3" not in sys.modules, "pyfuse3 was imported before clusterfs.fuse.binding"
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_GLOBAL | os.RTLD_NOW)
    try:
        import clusterfs.fuse._native  # noqa: F401, PLC0415  the flags must be set around it
    finally:
        sys.setdlopenflags(flags)


_load_native()

import pyfuse3  # noqa: E402  must come second

from clusterfs.fuse import _native as native  # noqa: E402

__all__ = ["native", "pyfuse3"]
