"""Who asks: the caller of a request, with supplementary groups where they count."""

from typing import Any

import msgspec

from clusterfs.fs.results import Caller
from clusterfs.fuse.binding import pyfuse3


def caller_of(context: Any) -> Caller:
    """Return who asks, without supplementary groups."""
    return Caller(context.uid, context.gid, context.pid, context.umask)


def with_groups(caller: Caller) -> Caller:
    """Return the caller with supplementary groups, which cost a read of /proc."""
    if not caller.uid:
        return caller
    try:
        groups = tuple(pyfuse3.get_sup_groups(caller.pid))
    except OSError:
        return caller  # it ended, or lives in another pid namespace
    return msgspec.structs.replace(caller, groups=groups)
