"""Bugs for daemons under test: what must be found if the checks are any good; and bad luck."""

from typing import Any

from clusterfs.daemon import Daemon
from clusterfs.fs.files import Files
from clusterfs.volume.messages import Code
from clusterfs.volume.pending import Pending
from clusterfs.volume.syncer import Syncer

_STALE_EVERY = 3  # of reads that see something new, and would


def sow(name: str) -> None:
    """Make this process behave wrongly in the way of that name; `none` does nothing."""
    if name != "none":
        globals()[f"_{name}"]()


def _stale_read() -> None:
    """Answer now and then a read with what the file had before."""
    right_nowait, right = Files.read_nowait, Files.read
    known: dict[int, bytes] = {}
    news = 0

    def wrong(content: bytes, inode: int) -> bytes:
        nonlocal news
        before = known.get(inode, content)
        if content == before or len(content) != len(before):
            known[inode] = content
            return content
        news += 1
        if news % _STALE_EVERY == 0:
            return before
        known[inode] = content
        return content

    def read_nowait(self: Files, handle: int, offset: int, size: int, **more: Any) -> bytes:
        content = right_nowait(self, handle, offset, size, **more)
        return wrong(content, self.handles.file(handle).inode.number)

    async def read(self: Files, handle: int, offset: int, size: int, **more: Any) -> bytes:
        content = await right(self, handle, offset, size, **more)
        return wrong(content, self.handles.file(handle).inode.number)

    Files.read_nowait, Files.read = read_nowait, read  # type: ignore[method-assign]


def _early_answer() -> None:
    """Acknowledge what one replica has, and what one replica has synced."""
    right = Pending.answered

    def answered(self: Pending, node: int, code: Code) -> bool:
        last = right(self, node, code)
        early = not last and code is Code.OK and bool(self.waiting)
        if early:
            self.waiting = 0
        return last or early

    synced = Syncer.synced

    def synced_early(self: Syncer, node: int, message: Any) -> None:
        if self._current is not None and message.token == self._token:
            self._current.waiting &= 1 << node
        synced(self, node, message)

    Pending.answered = answered  # type: ignore[method-assign]
    Syncer.synced = synced_early  # type: ignore[method-assign]


def _lost_at_once() -> None:
    """Lose the first incarnation as soon as it is a member."""
    right = Daemon._start_services

    async def start_services(self: Daemon) -> None:
        self.membership._me.lose("planted")
        await right(self)

    Daemon._start_services = start_services  # type: ignore[method-assign]
