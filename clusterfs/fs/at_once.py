"""Lookup, stat, open and close of what is cached and locked here: answers that wait for nothing.

Every method answers as its namesake of the filesystem would, or raises WouldBlock and has done
nothing: then that one is to be asked. None of them awaits, so what it has checked holds until it
returns; nobody can see it use a lock, and no signal can interrupt it.
"""

import os
from typing import TYPE_CHECKING

from clusterfs.errors import WouldBlock
from clusterfs.fs.attributes import Record
from clusterfs.fs.inodes import Inode
from clusterfs.fs.keys import NAME_BYTES
from clusterfs.fs.parts import Parts
from clusterfs.fs.results import Entry, Opened, Status

if TYPE_CHECKING:
    from clusterfs.fs.directories import Directories
    from clusterfs.fs.file_locks import FileLocks
    from clusterfs.fs.files import Files


class AtOnce:
    """What can be answered without waiting."""

    def __init__(
        self,
        parts: Parts,
        directories: "Directories",
        files: "Files",
        file_locks: "FileLocks",
        unnamed: set[int],
    ) -> None:
        self._directories = directories
        self._gate = parts.gate
        self._inodes = parts.inodes
        self._coherence = parts.coherence
        self._events = parts.events
        self._transactions = parts.transactions
        self._files = files
        self._file_locks = file_locks
        self._unnamed = unnamed
        self.answers = 0

    def lookup(self, parent: int, name: bytes) -> Entry:
        """Return what a name leads to, if it is known here, and count the kernel's reference.

        attributes None: it does not exist. Raises WouldBlock.
        """
        directory = self._inodes.get(parent)
        record = self._readable(directory)
        special = name in (b".", b"..") or len(name) > NAME_BYTES
        if not record.is_directory or not record.nlink or special:
            raise WouldBlock
        stamp = directory.lock.stamp
        found = self._directories.find_nowait(directory, name)
        if found is None:
            self.answers += 1
            return self._coherence.absent(directory, stamp)
        inode = self._inodes.get(found.inode)
        if inode.record is None or not inode.record.nlink or not inode.lock.shared_nowait():
            raise WouldBlock
        inode.lock.release()
        entry = self._coherence.entry(directory, stamp, inode)
        inode.lookups += 1
        self.answers += 1
        return entry

    def getattr(self, number: int) -> Status:
        """Return an inode's attributes. Raises WouldBlock."""
        inode = self._inodes.get(number)
        self._readable(inode)
        status = self._coherence.status(inode)
        self.answers += 1
        return status

    def open(self, number: int, flags: int, *, privileged: bool) -> Opened:
        """Open a file that need not be truncated. Raises WouldBlock."""
        inode = self._inodes.get(number)
        record = self._readable(inode)
        if record.is_directory or flags & os.O_TRUNC:
            raise WouldBlock
        if flags & os.O_ACCMODE and (self._transactions.read_only or inode.pages_possible):
            raise WouldBlock
        if not inode.open_lock.join_nowait() and not inode.open_lock.shared_nowait():
            raise WouldBlock
        try:
            opened = self._files.handles.open_file(inode, flags, privileged=privileged)
        except BaseException:
            inode.open_lock.release()
            raise
        self.answers += 1
        return self._files.told(opened)

    def release(self, handle: int) -> None:
        """Close a file for good, if nobody waits to hear of it. Raises WouldBlock."""
        opened = self._files.handles.known(handle)
        if opened is None or opened.staged is not None:
            raise WouldBlock
        inode = opened.inode
        watched = opened.writable and self._events.watched
        record = inode.record
        kept = record is not None and record.atomic_fsync and inode.needs_flush
        if watched or kept or inode.number in self._unnamed:
            raise WouldBlock
        self._file_locks.released(handle)
        self._files.handles.close(handle)
        inode.open_lock.release()
        self.answers += 1

    def _readable(self, inode: Inode) -> Record:
        """Return an inode's cached record, if that may be believed now. Raises WouldBlock."""
        record = inode.record
        if record is None or not self._gate.passable() or not inode.lock.shared_nowait():
            raise WouldBlock
        inode.lock.release()  # nobody else runs until the answer is given
        return record
