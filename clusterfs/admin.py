"""What administrators see of the locks: of this node, and of all nodes in one picture.

Peers are asked over the mesh, each for a limited time: one that is stopped or unreachable is listed
as silent, with the reason, and keeps nobody waiting. Nothing here takes a lock or touches the
mount; what a process is called and has open is read from /proc, which asks no filesystem.
"""

import base64
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import trio

from dlm.errors import PeerLost
from dlm.net import Answer, Malformed, Mesh, Refused

CHANNEL = 4
ANSWER_S = 5.0  # how long a peer may take
_TOO_LARGE = 1
_MOST_BYTES = 60 << 20
_FILES = 256  # of a process, looked at to find a path
_PROC = Path("/proc")

Pages = Iterator[list[dict[str, Any]]]  # of a long list, described as they are taken
Description = tuple[dict[str, Any], dict[str, Pages]]  # what is short, and the long lists
Describe = Callable[[bool], Description]  # argument: only what somebody waits for


class Question(msgspec.Struct, frozen=True):
    """What a peer is asked for."""

    only_busy: bool = False


class LockReports:
    """Answers for this node, and gathers what the others answer."""

    def __init__(
        self, mesh: Mesh, describe: Describe, members: Callable[[], dict[int, str]]
    ) -> None:
        self._mesh = mesh
        self._describe = describe
        self._members = members  # every other node that is a member, and its name
        mesh.register(CHANNEL, self)

    def message(self, *_: object) -> None:
        """Refuse: reports are asked for by calls."""
        raise Malformed("the channel of reports takes no messages")

    def begin_call(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: bytes
    ) -> Awaitable[Answer]:
        """Describe this node's locks to a peer."""
        del sender, incarnation, epoch, payload
        try:
            question = msgspec.json.decode(body, type=Question)
        except msgspec.DecodeError as bad:
            raise Malformed(str(bad)) from bad
        return self._answer(question)

    async def _answer(self, question: Question) -> Answer:
        report = msgspec.json.encode(await self._report(only_busy=question.only_busy))
        if len(report) > _MOST_BYTES:
            most = f"its locks take more than {_MOST_BYTES >> 20} MiB to describe"
            way = "ask that node itself, or only for those that somebody waits for"
            raise Refused(_TOO_LARGE, f"{most}: {way}".encode())
        return b"", report

    async def _report(self, *, only_busy: bool) -> dict[str, Any]:
        """Describe this node's locks, a page at a time, so that nothing else has to wait."""
        short, long = self._describe(only_busy)
        report = dict(short)
        for key, pages in long.items():
            encoded = bytearray(b"[")  # grows where it is: no page is copied twice
            for page in pages:
                if page:
                    encoded += b"," if len(encoded) > 1 else b""
                    encoded += msgspec.json.encode(page)[1:-1]
                await trio.lowlevel.checkpoint()
            encoded += b"]"
            report[key] = msgspec.Raw(encoded)
        return report

    async def own(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer the admin request "locks"."""
        return {"locks": await self._report(only_busy=bool(request.get("only_busy")))}

    async def all(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer the admin request "cluster_locks": {nodes: [...], silent: [...]}."""
        only_busy = bool(request.get("only_busy"))
        nodes: list[Any] = [await self._report(only_busy=only_busy)]
        silent: list[dict[str, Any]] = []

        async def ask(node: int, name: str) -> None:
            try:
                nodes.append(await self._ask(node, Question(only_busy)))
            except (PeerLost, Refused, trio.TooSlowError) as failure:
                silent.append({"node": node, "name": name, "reason": _reason(failure)})

        async with trio.open_nursery() as nursery:
            for node, name in self._members().items():
                nursery.start_soon(ask, node, name)
        return {"nodes": nodes, "silent": silent}

    async def awaiting(self, inodes: set[int]) -> list[str]:
        """Return the other nodes whose programs wait for file locks in any of these inodes."""
        found: list[str] = []

        async def ask(node: int, name: str) -> None:
            with suppress(PeerLost, Refused, trio.TooSlowError):
                report = msgspec.json.decode(await self._ask(node, Question(only_busy=True)))
                if any(used["waiting"] and _inode(used) in inodes for used in report["ranges"]):
                    found.append(name)

        async with trio.open_nursery() as nursery:
            for node, name in self._members().items():
                nursery.start_soon(ask, node, name)
        return sorted(found)

    async def _ask(self, node: int, question: Question) -> Any:
        with trio.fail_after(ANSWER_S):
            _, report = await self._mesh.call(node, CHANNEL, msgspec.json.encode(question))
        return msgspec.Raw(report)


def _inode(used: Mapping[str, Any]) -> int:
    """Return the inode of a file whose locks came as JSON."""
    return int.from_bytes(base64.b64decode(used["root"]), "big")


def _reason(failure: Exception) -> str:
    if isinstance(failure, PeerLost):
        return "it is not connected"
    if isinstance(failure, Refused):
        return failure.detail.decode("utf-8", "replace") or "it refused"
    return f"no answer within {ANSWER_S:g} s"


# -- what /proc knows about processes


def with_processes(pages: Pages, mountpoint: str) -> Pages:
    """Add to each use what its processes are called, and a path if one of them has it open."""
    return ([_with_processes(use, mountpoint) for use in page] for page in pages)


def _with_processes(use: dict[str, Any], mountpoint: str) -> dict[str, Any]:
    known = dict(use)
    for key in ("using", "waiting"):
        known[key] = [{**entry, "command": command_of(entry["pid"])} for entry in use[key]]
    if not known["path"]:
        inode = int.from_bytes(use["root"], "big")
        paths = (_path_open(entry["pid"], inode, mountpoint) for entry in use["waiting"])
        known["path"] = next(filter(None, paths), "")
    return known


def with_lockers(pages: Pages, mountpoint: str) -> Pages:
    """Add to each file's locks what its programs are called, and a path if one has it open."""
    return ([_with_lockers(used, mountpoint) for used in page] for page in pages)


def _with_lockers(used: dict[str, Any], mountpoint: str) -> dict[str, Any]:
    known, path = dict(used), ""
    inode = int.from_bytes(used["root"], "big")
    for key in ("waiting", "held"):
        known[key] = [{**entry, "command": command_of(entry["pid"])} for entry in used[key]]
        for entry in known[key]:
            path = path or _path_open(entry["pid"], inode, mountpoint)
    return known | {"path": path}


def command_of(pid: int) -> str:
    """Return what a process is called, or "" if it is not here any more."""
    with suppress(OSError):
        if pid > 0:
            return (_PROC / str(pid) / "comm").read_text("utf-8", "backslashreplace").strip()
    return ""


def _path_open(pid: int, inode: int, mountpoint: str) -> str:
    """Return the path under the mount by which a process has an inode open, or ""."""
    folder = _PROC / str(pid)
    with suppress(OSError):
        if pid > 0:
            for descriptor in islice((folder / "fd").iterdir(), _FILES):
                path = str(descriptor.readlink())
                if path.startswith(f"{mountpoint}/"):
                    details = (folder / "fdinfo" / descriptor.name).read_text()
                    if f"ino:\t{inode}\n" in details:
                        return path[len(mountpoint) :]
    return ""
