"""The locks of one or more nodes as their daemons described them, typed. PURE.

A picture is read from the daemon's reply or from a file that `--format json` wrote, which holds the
same fields. Fields that this version does not know are kept for JSON and otherwise ignored; fields
that an older daemon does not send have their defaults.
"""

import base64
from collections.abc import Iterator
from typing import Any

import msgspec

INODE_BYTES = 8  # a root of this length is the number of an inode

QUEUES = ("granted", "converting", "waiting")


class Copy(msgspec.Struct, frozen=True):
    """One lock in the queues of its master."""

    node: int
    id: int
    owner: str = ""
    granted: str | None = None
    requested: str | None = None
    flags: int = 0
    sequence: int = 0
    told: str | None = None
    wait_s: float = 0.0


class Resource(msgspec.Struct, frozen=True):
    """One resource on its master."""

    root: bytes
    leaf: bytes = b""
    lvb: bytes | None = None
    lvb_sequence: int = 0
    lvb_valid: bool = True
    granted: tuple[Copy, ...] = ()
    converting: tuple[Copy, ...] = ()
    waiting: tuple[Copy, ...] = ()

    @property
    def blocked(self) -> tuple[Copy, ...]:
        """Return who waits, in the order of being served."""
        return (*self.converting, *self.waiting)

    def copies(self) -> Iterator[tuple[str, Copy]]:
        """Yield (queue, copy)."""
        for queue in QUEUES:
            for copy in getattr(self, queue):
                yield queue, copy


class Own(msgspec.Struct, frozen=True):
    """One lock of the node itself, as the node knows it."""

    id: int
    root: bytes
    leaf: bytes = b""
    owner: str = ""
    master: int | None = None
    mode: str | None = None
    requested: str | None = None
    flags: int = 0
    blocked_for: str | None = None
    acknowledged: bool = True
    wait_s: float = 0.0
    lvb: bytes | None = None
    lvb_sequence: int = 0
    lvb_valid: bool = True


class Operation(msgspec.Struct, frozen=True):
    """A system call on the node's mount that uses a lock or waits for it."""

    pid: int = 0
    operation: str = ""
    mode: str | None = None
    wait_s: float = 0.0
    number: int = 0
    command: str = ""


class Use(msgspec.Struct, frozen=True):
    """What the filesystem does with a lock that the node keeps or asks for."""

    root: bytes
    leaf: bytes = b""
    path: str = ""
    mode: str = "NL"
    users: int = 0
    pins: int = 0
    revoking: bool = False
    using: tuple[Operation, ...] = ()
    waiting: tuple[Operation, ...] = ()


class Range(msgspec.Struct, frozen=True):
    """Bytes of a file that a program has locked."""

    pid: int = 0
    start: int = 0
    last: int = 0
    mode: str = "EX"
    node: int = 0
    command: str = ""


class Program(msgspec.Struct, frozen=True):
    """Somebody in the way of a wait."""

    node: int
    pid: int = 0


class Waiting(msgspec.Struct, frozen=True):
    """Bytes of a file that a program waits for."""

    number: int = 0
    pid: int = 0
    start: int = 0
    last: int = 0
    mode: str = "EX"
    wait_s: float = 0.0
    node: int = 0
    command: str = ""
    behind: tuple[Program, ...] = ()


class Ranges(msgspec.Struct, frozen=True):
    """A file's locks of one kind, as a user of it or as the keeper of its table knows them."""

    root: bytes
    leaf: bytes = b""
    path: str = ""
    keeper: int = 0
    borrowed: bool = False
    held: tuple[Range, ...] = ()
    waiting: tuple[Waiting, ...] = ()


class Node(msgspec.Struct, frozen=True):
    """Everything one node says about locks."""

    node: int
    incarnation: int = 0
    epoch: int = 0
    name: str = ""
    frozen: bool = False
    lost: bool = False
    members: dict[str, int] = {}
    resources: tuple[Resource, ...] = ()
    locks: tuple[Own, ...] = ()
    directory: tuple[dict[str, Any], ...] = ()
    uses: tuple[Use, ...] | None = None  # None: no filesystem, a program that uses dlm/ alone
    ranges: tuple[Ranges, ...] = ()
    kept_ranges: tuple[Ranges, ...] = ()
    sent: dict[str, int] = {}
    received: dict[str, int] = {}
    operations: dict[str, int] = {}
    migration: dict[str, Any] = {}  # of trees to and from this node
    misdirected: int = 0


class Silent(msgspec.Struct, frozen=True):
    """A member that did not describe its locks, and why."""

    node: int
    reason: str
    name: str = ""


class Picture(msgspec.Struct, frozen=True):
    """What was asked for: one node, or all that answered."""

    nodes: tuple[Node, ...]
    silent: tuple[Silent, ...] = ()


def read_picture(value: Any) -> Picture:
    """Return the picture in a decoded JSON value: of one node, or {"nodes": [...], ...}.

    Raises msgspec.ValidationError if it is none.
    """
    if isinstance(value, dict) and "nodes" in value:
        return msgspec.convert(value, Picture)
    return Picture((msgspec.convert(value, Node),))


def with_names(value: dict[str, Any]) -> dict[str, Any]:
    """Return one node's description with a printable `name` beside each root and leaf."""
    named = dict(value)
    for key in ("resources", "locks", "directory", "uses", "ranges", "kept_ranges"):
        if key in value:
            named[key] = [_named(entry) for entry in value[key]]
    return named


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    raw = [base64.b64decode(entry.get(part) or "") for part in ("root", "leaf")]
    return {"name": printable(*raw), **entry}


def printable(root: bytes, leaf: bytes = b"") -> str:
    """Return a name for people: an inode's number, and any part that is no text, in hexadecimal."""
    whole = root.hex() if len(root) == INODE_BYTES else _text(root)
    return f"{whole}/{_text(leaf)}" if leaf else whole


def _text(raw: bytes) -> str:
    if raw.isascii() and (text := raw.decode("ascii")).isprintable() and '"' not in text:
        return text
    return raw.hex()
