"""A node's locks as the locking_state files of OCFS2, which `debugfs.ocfs2` reads. PURE.

`fs_locks` is the filesystem's file (kernel: fs/ocfs2/dlmglue.c, ocfs2_dlm_seq_show, version 3): the
locks that this node keeps. `dlm_locks` is the lock manager's (fs/ocfs2/dlm/dlmdebug.c): the
resources mastered here with their queues. Both are read with `-f FILE`.

Names are OCFS2's: a letter (M: the inode, O: its open lock, R: renames), six zeros, the inode in 16
digits, a generation of 8 digits, which is 0 here. Any other name has its blanks replaced and, if it
has more than 31 characters, ends in its hash. The level of a mode that OCFS2 does not use is its
number.
"""

from collections.abc import Iterator

from clusterfs.cli.locks.fsdlm import shortened
from clusterfs.cli.locks.picture import INODE_BYTES, Copy, Node, Own, Resource, Use, printable
from clusterfs.cli.locks.waits import uses_by_name
from dlm.modes import Mode

NAME_BYTES = 31
LVB_BYTES = 64

_TYPES = {b"": "M", b"o": "O", b"rename": "R"}
_VERSION = 3
_INITIALIZED, _ATTACHED, _BUSY, _BLOCKED, _QUEUED = 0x40, 0x1, 0x2, 0x4, 0x100
_ATTACH, _CONVERT, _DOWNCONVERT = 1, 2, 3
_LISTS = {"granted": 0, "converting": 1, "waiting": 2}
_RECOVERING = 0x2


def fs_locks(node: Node) -> str:
    """Return the filesystem's locking_state: one line for each lock of this node."""
    uses = uses_by_name(node)
    return "".join(_fs_line(own, uses.get((own.root, own.leaf), Use(b""))) for own in node.locks)


def dlm_locks(node: Node) -> str:
    """Return the lock manager's locking_state: a record for each resource mastered here."""
    records = ("\n".join(_record(node, resource)) for resource in node.resources)
    return "".join(record + "\n\n" for record in records)


def lock_name(root: bytes, leaf: bytes) -> str:
    """Return the name in at most 31 characters without blanks."""
    if len(root) == INODE_BYTES and leaf in _TYPES:
        return f"{_TYPES[leaf]}000000{root.hex()}00000000"
    return shortened(printable(root, leaf).replace(" ", "_"), NAME_BYTES)


def _fs_line(own: Own, use: Use) -> str:
    flags, action = _INITIALIZED, 0
    if own.mode is not None:
        flags |= _ATTACHED
    if own.requested is not None:
        flags |= _BUSY
        action = _ATTACH if own.mode is None else _CONVERT
    if own.blocked_for is not None:
        flags |= _BLOCKED | _QUEUED
    if use.revoking:
        flags |= _BUSY
        action = _DOWNCONVERT
    lvb = (own.lvb or b"")[:LVB_BYTES].ljust(LVB_BYTES, b"\0")
    fields = [
        f"{_VERSION:#x}",
        lock_name(own.root, own.leaf),
        str(_level(own.mode)),
        f"{flags:#x}",
        f"{action:#x}",
        "0x0",
        str(max(use.users, 0)),
        str(int(use.users < 0) + use.pins),
        str(_level(own.requested)),
        str(_level(own.blocked_for)),
        *(f"{byte:#x}" for byte in lvb),
        *_waits(own),
    ]
    return "\t".join(fields) + "\n"


def _waits(own: Own) -> Iterator[str]:
    """Yield the counters at the end of a line; only the wait under way is known."""
    exclusive = own.requested is not None and Mode[own.requested] > Mode.PR
    waits = own.requested is not None
    wait_us = int(own.wait_s * 1e6)
    shared_us, exclusive_us = (0, wait_us) if exclusive else (wait_us, 0)
    gets = (int(waits and not exclusive), int(waits and exclusive))
    yield from (str(count) for count in (*gets, 0, 0))
    yield from (str(total * 1000) for total in (shared_us, exclusive_us))
    yield from (str(longest) for longest in (shared_us, exclusive_us))
    yield "0"


def _record(node: Node, resource: Resource) -> Iterator[str]:
    copies = list(resource.copies())
    nodes = sorted({copy.node for _, copy in copies})
    state = _RECOVERING if node.frozen else 0
    yield f"NAME:{lock_name(resource.root, resource.leaf)}"
    yield f"LRES:1,{node.node & 0xFF},{state},0,0,0,{int(node.frozen)},0,0,0,{len(copies) + 1}"
    yield f"RMAP:{''.join(f'{other} ' for other in nodes)}"
    lvb = (resource.lvb or b"")[:LVB_BYTES].ljust(LVB_BYTES, b"\0")
    yield f"LVBX:{lvb.hex()}"
    for queue, copy in copies:
        yield _lock_line(copy, queue)


def _lock_line(copy: Copy, queue: str) -> str:
    waiting = queue == "waiting"
    level = _level(copy.requested if waiting else copy.granted)
    converting = _level(copy.requested if queue == "converting" else None)
    told = int(copy.told is not None)
    return (
        f"LOCK:1,{_LISTS[queue]},{level},{converting},{copy.node & 0xFF},"
        f"{copy.node}:{copy.id & 0xFFFFFFFF},0,0,0,{told},0,0,0,0,1"
    )


def _level(mode: str | None) -> int:
    return -1 if mode is None else int(Mode[mode])
