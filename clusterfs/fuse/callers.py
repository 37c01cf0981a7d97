"""Who asks: the caller of a request, with groups and capabilities where they count."""

from pathlib import Path
from typing import Any, Final

import msgspec

from clusterfs.fs.results import Caller
from clusterfs.fuse.binding import native

PROC: Final = Path("/proc")
NOBODY: Final = 65534  # whom a squashed root is taken for


def caller_of(context: Any) -> Caller:
    """Return who asks, without supplementary groups."""
    return Caller(context.uid, context.gid, context.pid, context.umask)


def writer() -> Caller:
    """Return whose request is being handled, without groups; ask before the first await."""
    return Caller(native.current_uid(), native.current_gid(), native.current_pid())


def squashed(caller: Caller) -> Caller:
    """Return who a caller counts as where root is nobody special."""
    return caller if caller.uid else Caller(NOBODY, NOBODY)


def with_groups(caller: Caller) -> Caller:
    """Return the caller with supplementary groups and capabilities, which cost a read of /proc."""
    if not caller.uid:
        return caller
    try:
        text = (PROC / str(caller.pid) / "status").read_text("ascii", "replace")
    except OSError:
        return caller  # it ended, or lives in another pid namespace
    found = {key: value for key, _, value in (line.partition(":") for line in text.splitlines())}
    groups = tuple(int(word) for word in found.get("Groups", "").split())
    capabilities = int(found.get("CapEff", "0"), 16)
    return msgspec.structs.replace(caller, groups=groups, capabilities=capabilities)
