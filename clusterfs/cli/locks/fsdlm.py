"""A node's locks as the debugfs files of Linux fs/dlm, which `dlm_tool` reads. PURE.

`lockdump` is the file <lockspace>_locks (kernel: fs/dlm/debug_fs.c, print_format2), for
`dlm_tool lockdump`; `lockdebug` is <lockspace>_all (print_format3), for `dlm_tool lockdebug`.

What differs from a kernel's: a lock's number is the node in the upper 8 bits and that node's number
for the lock below, the same on owner and master; a name of more than 64 bytes ends in its hash.
"""

from collections.abc import Iterator
from typing import NamedTuple

import xxhash

from clusterfs.cli.locks.picture import Copy, Node, Own, Resource, printable
from clusterfs.cli.locks.waits import pid_of
from dlm.modes import Mode

NAME_BYTES = 64

_MASTER_COPY = 0x10000
_INVALID = -1
_STATUS = {"waiting": 1, "granted": 2, "converting": 3}
_MSG_REQUEST, _MSG_CONVERT = 1, 2
_LOOKUP = -1
_HEADER = "id nodeid remid pid xid exflags flags sts grmode rqmode time_ms r_nodeid r_len r_name"


class _Lkb(NamedTuple):
    """A lock as fs/dlm keeps it."""

    id: int
    nodeid: int  # the other end: of a process copy the master, of a master copy the owner
    remid: int
    pid: int
    exflags: int
    flags: int
    status: int
    granted: int
    requested: int
    told: int
    wait_type: int
    lvb_sequence: int
    wait_us: int


class _Rsb(NamedTuple):
    """A resource as fs/dlm keeps it: mastered here (0), elsewhere, or not known yet (-1)."""

    name: str
    nodeid: int
    lvb: bytes | None
    lvb_sequence: int
    locks: list[_Lkb]


def lockdump(node: Node) -> str:
    """Return the file <lockspace>_locks."""
    lines = [_HEADER]
    for rsb in _rsbs(node):
        lines += [
            f"{lkb.id:x} {lkb.nodeid} {lkb.remid:x} {lkb.pid} 0 {lkb.exflags:x} {lkb.flags:x} "
            f"{lkb.status} {lkb.granted} {lkb.requested} {lkb.wait_us} "
            f'{rsb.nodeid} {len(rsb.name)} "{rsb.name}"'
            for lkb in rsb.locks
        ]
    return "\n".join(lines) + "\n"


def lockdebug(node: Node) -> str:
    """Return the file <lockspace>_all."""
    lines = ["version rsb 1.1 lvb 1.1 lkb 1.1"]
    for number, rsb in enumerate(_rsbs(node), 1):
        first = rsb.locks[0].id if rsb.nodeid == _LOOKUP else 0
        lines.append(
            f"rsb {number:016x} {rsb.nodeid} {first:x} 0 0 0 0 {len(rsb.name)} str {rsb.name}"
        )
        if rsb.lvb is not None:
            lines.append(f"lvb {rsb.lvb_sequence} {len(rsb.lvb)} {rsb.lvb.hex(' ')}")
        lines += [_all_line(lkb, lookup=rsb.nodeid == _LOOKUP) for lkb in rsb.locks]
    return "\n".join(lines) + "\n"


def shortened(name: str, most: int) -> str:
    """Return `name`, or a prefix of it and its hash, in at most `most` characters."""
    if len(name) <= most:
        return name
    tail = f"~{xxhash.xxh32_hexdigest(name.encode())}"
    return name[: most - len(tail)] + tail


def _all_line(lkb: _Lkb, *, lookup: bool) -> str:
    return (
        f"lkb {lkb.id:x} {lkb.nodeid} {lkb.remid:x} {lkb.pid} 0 {lkb.exflags:x} {lkb.flags:x} "
        f"{lkb.status} {lkb.granted} {lkb.requested} {lkb.told} {lookup:d} {lkb.wait_type} "
        f"{lkb.lvb_sequence} {lkb.wait_us * 1000} 0"
    )


def _rsbs(node: Node) -> Iterator[_Rsb]:
    """Yield what this node masters, then what it has locks on elsewhere."""
    for resource in node.resources:
        yield _mastered(node, resource)
    elsewhere: dict[tuple[str, int], list[Own]] = {}
    mastered = {(resource.root, resource.leaf) for resource in node.resources}
    for own in node.locks:
        if own.master != node.node and (own.root, own.leaf) not in mastered:
            key = (printable(own.root, own.leaf), own.master or _LOOKUP)
            elsewhere.setdefault(key, []).append(own)
    for (name, master), locks in elsewhere.items():
        known = max(locks, key=lambda own: (own.lvb is not None, own.lvb_sequence))
        copies = [_process_copy(node, own, master) for own in locks]
        copies.sort(key=lambda lkb: (2, 3, 1).index(lkb.status))
        yield _Rsb(shortened(name, NAME_BYTES), master, known.lvb, known.lvb_sequence, copies)


def _mastered(node: Node, resource: Resource) -> _Rsb:
    name = shortened(printable(resource.root, resource.leaf), NAME_BYTES)
    locks = [_copy(node, copy, queue, resource) for queue, copy in resource.copies()]
    return _Rsb(name, 0, resource.lvb, resource.lvb_sequence, locks)


def _copy(node: Node, copy: Copy, queue: str, resource: Resource) -> _Lkb:
    remote = copy.node != node.node
    return _Lkb(
        handle(copy.node, copy.id),
        copy.node if remote else 0,
        handle(copy.node, copy.id) if remote else 0,
        pid_of(copy.owner),
        copy.flags,
        _MASTER_COPY if remote else 0,
        _STATUS[queue],
        _mode(copy.granted),
        _mode(copy.requested),
        _mode(copy.told) if copy.told else 0,
        0,
        resource.lvb_sequence,
        int(copy.wait_s * 1e6),
    )


def _process_copy(node: Node, own: Own, master: int) -> _Lkb:
    queue = "granted"
    if own.requested is not None:
        queue = "waiting" if own.mode is None else "converting"
    wait_type = 0
    if not own.acknowledged:
        wait_type = _MSG_REQUEST if own.mode is None else _MSG_CONVERT
    return _Lkb(
        handle(node.node, own.id),
        max(master, 0),
        0 if own.mode is None and not own.acknowledged else handle(node.node, own.id),
        pid_of(own.owner),
        own.flags,
        0,
        _STATUS[queue],
        _mode(own.mode),
        _mode(own.requested),
        _mode(own.blocked_for) if own.blocked_for else 0,
        wait_type,
        own.lvb_sequence,
        int(own.wait_s * 1e6),
    )


def handle(node: int, number: int) -> int:
    """Return a number of 32 bits for a lock, the same wherever it is shown."""
    return (node & 0xFF) << 24 | number & 0xFFFFFF


def _mode(name: str | None) -> int:
    return _INVALID if name is None else int(Mode[name])
