"""fsck of the filesystem in one brick: inode objects, names, links, stripes; nothing is repaired.

A brick holds only the groups that its node is a replica of. So what a name leads to is missed only
if the brick has other objects of that inode's group, and links are counted only where every
directory is here.
"""

import struct
from collections import Counter

from clusterfs.errors import FilesystemError
from clusterfs.fs import attributes, keys
from clusterfs.store.checking import Checker
from clusterfs.store.objects import MARK, ObjectId, inode_object, split_object_id
from clusterfs.store.state import INCOMPLETE

_PAGE = 4096


def check_namespace(checker: Checker) -> None:
    """Report what is wrong with the filesystem's objects."""
    _Namespace(checker).run()


class _Namespace:
    """One check."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._state = checker.state
        self._groups: set[int] = set()  # of which there is something here

    def run(self) -> None:
        incomplete = False
        for object_id in self._checker.objects():
            head = self._state.head(object_id)
            assert head is not None
            self._groups.add(head.group)
            incomplete |= head.version == INCOMPLETE
        if incomplete:
            return  # it was being synchronised: what is missing will come
        for object_id in self._checker.objects():
            inode, part = split_object_id(object_id)
            if part == 0:
                self._check_inode(inode, object_id)
            else:
                self._check_stripe(inode, part - 1)

    def _check_inode(self, inode: int, object_id: ObjectId) -> None:
        record = self._record(inode)
        if record is None:
            self._problem(inode, "has no readable attributes")
            return
        entries = self._entries(inode, object_id)
        marks = self._state.get(object_id, MARK) or b""
        if not record.is_directory:
            if entries:
                self._problem(inode, "is no directory, but has entries")
            if record.nlink == 0 and keys.ORPHAN not in marks:
                self._problem(inode, "has no name and nobody will delete it")
            return
        names = Counter(kind for _, kind in entries)
        if record.nlink and record.nlink != 2 + names[keys.DIRECTORY]:
            self._problem(
                inode, f"has {names[keys.DIRECTORY]} subdirectories and {record.nlink} links"
            )

    def _record(self, inode: int) -> attributes.Record | None:
        stored = self._state.get(inode_object(inode), keys.RECORD)
        try:
            return None if stored is None else attributes.decode(stored)
        except (FilesystemError, struct.error):
            return None

    def _entries(self, inode: int, directory: ObjectId) -> list[tuple[int, int]]:
        """Return (inode, kind) of all entries, checked one by one."""
        found: list[tuple[int, int]] = []
        after = b""
        while page := self._state.scan(directory, keys.ENTRY, after, _PAGE):
            for key, value in page:
                try:
                    keys.check_name(key[1:])
                    entry = keys.decode_entry(value)
                except (FilesystemError, struct.error):
                    self._problem(inode, f"has an entry that cannot be: {key[1:]!r}")
                    continue
                found.append((entry.inode, entry.kind))
                self._check_target(inode, key[1:], entry)
            after = page[-1][0]
        return found

    def _check_target(self, directory: int, name: bytes, entry: keys.Entry) -> None:
        target = self._state.head(inode_object(entry.inode))
        if target is None:
            if self._group(entry.inode) in self._groups:
                self._problem(directory, f"{name!r} leads to inode {entry.inode:x}: there is none")
            return
        record = self._record(entry.inode)
        if record is not None and record.mode >> 12 != entry.kind:
            self._problem(directory, f"{name!r} has another type than inode {entry.inode:x}")

    def _group(self, inode: int) -> int:
        return inode >> 52  # as placement has it, while a volume has at most 1024 groups

    def _check_stripe(self, inode: int, stripe: int) -> None:
        record = self._record(inode)
        if record is None:
            if self._group(inode) in self._groups and self._state.head(inode_object(inode)) is None:
                self._problem(inode, f"does not exist, but its stripe {stripe} does")
        elif not record.is_regular:
            self._problem(inode, f"is no file, but has data (stripe {stripe})")

    def _problem(self, inode: int, text: str) -> None:
        self._checker.problem("namespace", f"inode {inode:x} {text}")
