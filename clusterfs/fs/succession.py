"""One process goes, another serves the same mount: open files go on.

The one that goes rests (`rest`): new operations stall and what runs comes to its end, except what
only waits and has changed nothing: the kernel asks the next process for that again. Then the
kernel's caches are dropped, while page writeback is served, and everything is on the disks. The one
that comes takes over (`take_over`) the handles that the kernel has, before it receives a request.

File locks are taken again, unless others may have had them meanwhile (file_locks.py).

After a crash nobody rested. What was acknowledged and was in the dead process only is lost: those
handles are dead (endangered.py). All else is judged as at a readmission.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import structlog
import trio

from clusterfs.errors import FilesystemError
from clusterfs.fs.endangered import LockNote
from clusterfs.fs.file_locks import FileLocks
from clusterfs.fs.files import Files
from clusterfs.fs.handles import Former
from clusterfs.fs.inodes import Inode
from clusterfs.fs.parts import Parts
from clusterfs.fs.readmission import Readmission
from dlm.errors import LockLost

log = structlog.get_logger()

_LOOK_S = 0.02


class Succession:
    """Hands the open files of a mount on, or takes them over."""

    def __init__(
        self, parts: Parts, files: Files, file_locks: FileLocks, readmission: Readmission
    ) -> None:
        self._gate = parts.gate
        self._volume = parts.volume
        self._inodes = parts.inodes
        self._coherence = parts.coherence
        self._writeback = parts.writeback
        self._endangered = parts.endangered
        self._quotas = parts.quotas
        self._files = files
        self._file_locks = file_locks
        self._readmission = readmission

    async def take_over(
        self,
        formers: Iterable[Former],
        epoch: int,
        *,
        clean: bool,
        locks: Sequence[LockNote] = (),
    ) -> bool:
        """Make the handles and file locks of the former process again, last in view `epoch`.

        clean: it rested; else it was lost then. Returns False if this node is lost meanwhile.
        """
        handles = self._files.handles
        for former in formers:
            inode = self._inodes.get(former.inode)
            if not former.directory:
                hold = partial(self._files.hold_open, inode)
                await self._gate.run(hold, internal=True)
            handles.restore(former, inode)
        self._restore_locks(locks, epoch)
        return await self._readmission.take_over(epoch, clean=clean)

    def _restore_locks(self, locks: Sequence[LockNote], since: int) -> None:
        owners: dict[tuple[int, bool, int], list[LockNote]] = {}
        for note in locks:
            owners.setdefault((note.inode, note.flock, note.owner), []).append(note)
        for (inode, flock, owner), notes in owners.items():
            if all(self._files.handles.known(note.handle) for note in notes):
                self._file_locks.restore(notes, self._inodes.get(inode), since)
            else:  # it died while it closed the file
                self._endangered.locks(inode, owner, (), flock=flock)

    async def rest(self, patience_s: float) -> bool:
        """Serve nothing new, and leave nothing behind in this process.

        Returns False, and goes on as before, if operations are still under way after that time.
        """
        self._gate.resting = True
        rested = False
        try:
            with trio.move_on_after(patience_s):
                while self._gate.busy():  # noqa: ASYNC110  operations do not say when they wait
                    await trio.sleep(_LOOK_S)
                await self._coherence.drop_everything(self._inodes)
                await self._write_everything_back()
                await self._quotas.give_back()
                rested = True
        except (FilesystemError, LockLost) as failure:
            log.warning("this process cannot rest", reason=repr(failure))
        finally:
            self._gate.resting = rested
        return rested

    async def _write_everything_back(self) -> None:
        while self._writeback.dirty:
            for inode in list(self._writeback.dirty):
                await self._files.write_back(inode)
        await self._sync(self._endangered.clean())

    async def settle(self) -> None:
        """Make what was acknowledged safe on the disks, and note that it is."""
        notes = self._endangered.clean()
        if notes:
            await self._gate.run(partial(self._sync, notes), internal=True)

    async def _sync(self, notes: dict[Inode, int]) -> None:
        await self._volume.sync()
        for inode, note in notes.items():
            self._endangered.safe(inode, note)
