"""A mount's daemon is replaced, and its programs notice a pause: upgrade on request, or a crash.

On request: the filesystem rests (fs/succession.py), the session is abandoned, the node leaves the
cluster as at an unmount, and its supervisor starts another daemon. That one opens the brick, joins,
takes over the open handles and file locks from the journal, and only then answers requests: the
kernel sends those again that the first one did not answer.

After a crash it is the same without the first half, if the config allows it (`after_crash`).
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import structlog
import trio

from clusterfs.cluster.node import Membership
from clusterfs.cluster.views import View
from clusterfs.errors import FilesystemError
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fuse.again import Again
from clusterfs.fuse.beat import EPOCH, INCARNATION, SUCCESSION, Beat, Succession
from clusterfs.fuse.cached import CachedInodes
from clusterfs.fuse.journal import HandleJournal
from clusterfs.fuse.mount import Mount

PATIENCE_S = 30.0
_SETTLE_S = 1.0
_AWAITED = (
    "programs on {nodes} wait for file locks that programs have here; they could get them while no "
    "daemon serves this mount, so end either of them first, or move their virtual machines"
)
_CANNOT = (
    "this kernel cannot send requests again that a daemon left unanswered (Linux 6.9 can): "
    "unmount and mount again instead"
)

log = structlog.get_logger(package="daemon")


Awaiting = Callable[[set[int]], Awaitable[list[str]]]


class Node(Protocol):
    """What is needed of the daemon."""

    filesystem: Filesystem
    membership: Membership


async def _nobody(_inodes: set[int]) -> list[str]:
    return []


class Handover:
    """Takes the mount over at the start, if there is one to take over; hands it over when asked."""

    def __init__(self, node: Node, mount: Mount | None, beat: Beat) -> None:
        self.journal = HandleJournal(beat)
        self.cached = CachedInodes(beat)
        self._node = node
        self._mount = mount
        self._beat = beat
        self._words = beat.words
        self._clean = beat.words[SUCCESSION] == Succession.CLEAN
        self._former_epoch = beat.words[EPOCH]
        self._inherits = mount is not None and mount.is_inherited
        self._up_to_date = not self._inherits  # what is open here is judged as of our view
        self.again = Again(beat.words[INCARNATION] if self._inherits else 0)
        self._under_way = False
        self._awaiting: Awaiting = _nobody
        self.handles = 0  # that were taken over
        self.lost_handles = 0  # of them: what was written through these is lost

    @property
    def serving(self) -> bool:
        """Whether the mount answers; always, where there is none."""
        return self._mount is None or self._mount.answering

    @property
    def takeovers(self) -> int:
        """How often the mount got another daemon."""
        return self._beat.takeovers

    @property
    def _can_be_taken_over(self) -> bool:
        return self._mount is not None and self._mount.can_be_taken_over

    async def take_over(self) -> None:
        """Make the handles again that programs have from the daemon before this one."""
        if not self._inherits:
            return
        formers = self.journal.recover(clean=self._clean)
        locks = self.journal.recover_locks()
        for former in formers:
            if not former.directory:
                await self.cached.opened(former.inode, former.handle)
        filesystem = self._node.filesystem
        taken = await filesystem.take_over(
            formers, self._former_epoch, clean=self._clean, locks=locks
        )
        self.handles = len(formers)
        self.lost_handles = sum(former.lost for former in formers)
        log.info(
            "took the mount over",
            handles=self.handles,
            lost=self.lost_handles,
            locks=filesystem.file_locks.retaken,
            lost_locks=filesystem.file_locks.lost,
        )
        if taken:
            self.back(self._node.membership.view.epoch)

    def enter(self, epoch: int) -> None:
        """Note the view, for the judgement of the daemon that comes next."""
        if self._up_to_date:
            self._words[EPOCH] = epoch

    def out(self) -> None:
        """This node was removed: what is open here was last certain in the view noted last."""
        self._up_to_date = False

    def back(self, epoch: int) -> None:
        """All that is open here was taken up again in this view."""
        self._up_to_date = True
        self._words[EPOCH] = epoch

    def left(self, view: View | None) -> None:
        """Note the view in which this node had left; None: that is not known."""
        if view is not None and not view.members:
            self._words[EPOCH] = view.epoch  # nobody could do anything in it

    def allow(self, *, after_crash: bool) -> None:
        """Let the supervisor replace this daemon should it crash; the mount is shared with it."""
        can = after_crash and self._can_be_taken_over
        if after_crash and not can:
            log.warning("after a crash the mount will end", reason=_CANNOT)
        self._words[SUCCESSION] = Succession.AFTER_CRASH if can else Succession.NONE

    def ask(self, awaiting: Awaiting) -> None:
        """Learn from this on which other nodes programs wait for file locks in given inodes."""
        self._awaiting = awaiting

    async def begin(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        """Hand the mount over to another daemon; it answers once this one serves no more."""
        mount = self._mount
        if mount is None:
            return {"ok": False, "error": "nothing is mounted: end this daemon, start another one"}
        if not mount.can_be_taken_over:
            return {"ok": False, "error": _CANNOT}
        if nodes := await self._awaiting(set(self._node.filesystem.file_locks.locked_files())):
            return {"ok": False, "error": _AWAITED.format(nodes=", ".join(nodes))}
        if self._under_way:
            return {"ok": False, "error": "the mount is being handed over already"}
        self._under_way = True
        try:
            rested = await self._node.filesystem.rest(PATIENCE_S)
        finally:
            self._under_way = False
        if not rested:
            reason = f"requests of programs are still under way after {PATIENCE_S:g} s, or failed"
            return {"ok": False, "error": f"{reason}; the node goes on as before, see its log"}
        self._under_way = True
        self._words[SUCCESSION] = Succession.HANDING_OVER
        log.info("handing the mount over", handles=len(self.journal))
        mount.hand_over()
        return {"pid": os.getpid()}

    def end(self) -> None:
        """Say that nothing is left in this process."""
        if self._words[SUCCESSION] == Succession.HANDING_OVER:
            self._words[SUCCESSION] = Succession.CLEAN

    async def keep_settled(self) -> None:
        """Note, for ever, what is on the disks by now and would survive a crash."""
        while True:
            await trio.sleep(_SETTLE_S)
            with suppress(FilesystemError):  # the brick failed: then it stays endangered
                await self._node.filesystem.settle()
