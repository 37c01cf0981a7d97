"""Which daemon a user means: by mount point, config file or admin socket.

The mount table is read, never the mount: a stat of a mount whose daemon is stopped would wait.
"""

import os
import stat
from pathlib import Path

import msgspec

from clusterfs import config
from clusterfs.errors import SetupError

MOUNTINFO = Path("/proc/self/mountinfo")
FILESYSTEM_TYPE = "fuse.clusterfs"
_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


class Mount(msgspec.Struct, frozen=True):
    """One line of the mount table."""

    point: Path
    source: str
    kind: str


def mounts(table: Path = MOUNTINFO) -> list[Mount]:
    """Return every clusterfs mount that this process sees, oldest first."""
    found = []
    for line in table.read_text("utf-8", "surrogateescape").splitlines():
        place, _, origin = line.partition(" - ")
        kind, source = origin.split(" ")[:2]
        if kind == FILESYSTEM_TYPE:
            found.append(Mount(Path(_plain(place.split(" ")[4])), _plain(source), kind))
    return found


def mount_at(point: Path, table: Path = MOUNTINFO) -> Mount | None:
    """Return the topmost clusterfs mount at `point`, without touching it."""
    place = resolved(point)
    found = [mount for mount in mounts(table) if mount.point == place]
    return found[-1] if found else None


def resolved(point: Path) -> Path:
    """Resolve all of a path but its last part, which may be a mount that does not answer."""
    whole = point.absolute()
    return whole.parent.resolve() / whole.name


def find_socket(target: str | None, table: Path = MOUNTINFO) -> Path:
    """Return the admin socket of the daemon that `target` names. Raises SetupError."""
    if target is None:
        return config.load(Path(_only_mount(table).source)).control_socket
    path = Path(target)
    if mount := _mount_above(path, table) or mount_at(path, table):
        return config.load(Path(mount.source)).control_socket
    try:
        mode = path.stat().st_mode
    except OSError as failure:
        raise SetupError(f"{target}: {failure.strerror}") from failure
    if stat.S_ISSOCK(mode):
        return path
    if stat.S_ISREG(mode):
        return config.load(path).control_socket
    raise SetupError(f"{target}: on no clusterfs mount, no config file and no admin socket")


def socket_for(path: Path, table: Path = MOUNTINFO) -> Path:
    """Return the admin socket of the daemon that serves a path. Raises SetupError."""
    return config.load(Path(mount_of(path, table).source)).control_socket


def mount_of(path: Path, table: Path = MOUNTINFO) -> Mount:
    """Return the mount that a path lies on. Raises SetupError."""
    mount = _mount_above(resolved(path), table)
    if mount is None:
        raise SetupError(f"{path} is on no clusterfs that is mounted here")
    return mount


def _mount_above(path: Path, table: Path) -> Mount | None:
    """Return the mount that a path lies on by its words alone: nothing is looked at."""
    place = Path(os.path.abspath(path))  # noqa: PTH100  (takes .. away; Path.absolute does not)
    found = [mount for mount in mounts(table) if place.is_relative_to(mount.point)]
    return max(found, key=lambda mount: len(mount.point.parts), default=None)


def _only_mount(table: Path) -> Mount:
    found = mounts(table)
    if not found:
        raise SetupError("no clusterfs is mounted here; name a config file or an admin socket")
    if len(found) > 1:
        points = ", ".join(str(mount.point) for mount in found)
        raise SetupError(f"several are mounted here, name one: {points}")
    return found[0]


def _plain(escaped: str) -> str:
    for code, character in _ESCAPES.items():
        escaped = escaped.replace(code, character)
    return escaped
