"""fsck of the filesystem in one brick: inode objects, names, links, stripes.

A brick holds only the groups that its node is a replica of. So what a name leads to is missed only
if the brick has other objects of that inode's group; and links are counted, and anything repaired,
only if everything that the names here lead to is of groups that are here, and no transaction waits
for its decision.

Repaired on request (see repairing.py):

    a name that leads nowhere, or cannot be       goes
    a name with another type than its inode       gets the inode's
    a wrong number of links                       becomes that of the names
    an inode with links but without a name        gets a name in /lost+found
    an inode without links that nobody deletes    is marked for deletion by a running node
    entries of what is no directory, data         go
      without a file

An inode whose attributes cannot be read is left: only another replica may know them.

Memory: 8 bytes a name, and some five times that while they are sorted.
"""

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable

from clusterfs.errors import FilesystemError
from clusterfs.fs import attributes, keys
from clusterfs.fs.repairing import Repairs
from clusterfs.store.checking import Checker
from clusterfs.store.objects import MARK, Delete, ObjectId, inode_object, split_object_id
from clusterfs.store.state import INCOMPLETE
from clusterfs.volume.placement import MAX_GROUPS, group_of_inode

_PAGE = 4096


def check_namespace(checker: Checker) -> None:
    """Report what is wrong with the filesystem's objects; repair it if the checker may."""
    _Namespace(checker).run()


class _Namespace:
    """One check."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._state = checker.state
        self._repairs = Repairs(checker.state)
        self._groups: set[int] = set()  # of which there is something here
        self._names: array[int] = array("Q")  # where the names lead, sorted in the end
        self._whole = False  # the root, and all that the names lead to, is in groups that are here

    def run(self) -> None:
        incomplete = False
        for object_id in self._checker.objects():
            head = self._state.head(object_id)
            assert head is not None
            self._groups.add(head.group)
            incomplete |= head.version == INCOMPLETE
        if incomplete:
            return  # it was being synchronised: what is missing will come
        self._whole = self._is_whole()
        for object_id in self._checker.objects():
            inode, part = split_object_id(object_id)
            if part == 0:
                self._check_inode(inode, object_id)
            else:
                self._check_stripe(inode, part - 1, object_id)
        if self._whole:
            self._names = array("Q", sorted(self._names))
            for object_id in self._checker.objects():
                inode, part = split_object_id(object_id)
                if part == 0:
                    self._check_links(inode)

    def _is_whole(self) -> bool:
        if self._state.head(inode_object(keys.ROOT)) is None:
            return False
        for object_id in self._checker.objects():
            for _, value in self._pairs(object_id):
                if len(value) >= keys.ENTRY_BYTES:
                    group = _group(keys.decode_entry(value).inode)
                    if group not in self._groups:
                        return False
        return True

    def _pairs(self, object_id: ObjectId) -> "list[tuple[bytes, bytes]]":
        """Return all entries of a directory, as they are stored."""
        found: list[tuple[bytes, bytes]] = []
        while page := self._state.scan(
            object_id, keys.ENTRY, found[-1][0] if found else b"", _PAGE
        ):
            found += page
        return found

    def _check_inode(self, inode: int, object_id: ObjectId) -> None:
        record = self._record(inode)
        if record is None:
            self._problem(inode, "has no readable attributes")
            return
        pairs = self._pairs(object_id)
        if not record.is_directory:
            if pairs:
                self._problem(
                    inode, "is no directory, but has entries", lambda: self._clear(object_id)
                )
            if not record.nlink and not self._whole:
                self._check_orphan(inode)
            return
        kinds = Counter(self._check_entry(inode, object_id, *pair) for pair in pairs)
        links = 2 + kinds[keys.DIRECTORY]
        if record.nlink and record.nlink != links:
            self._problem(
                inode,
                f"has {kinds[keys.DIRECTORY]} subdirectories and {record.nlink} links",
                lambda: self._repairs.put_record(inode, nlink=links),
            )

    def _clear(self, object_id: ObjectId) -> None:
        for key, _ in self._pairs(object_id):
            self._repairs.remove_key(object_id, key)

    def _record(self, inode: int) -> attributes.Record | None:
        stored = self._state.get(inode_object(inode), keys.RECORD)
        try:
            return None if stored is None else attributes.decode(stored)
        except (FilesystemError, struct.error):
            return None

    def _check_entry(self, directory: int, object_id: ObjectId, key: bytes, value: bytes) -> int:
        """Check a name; return the type that it has in the end, 0 if it goes."""
        name = key[len(keys.ENTRY) :]

        def go() -> None:
            self._repairs.remove_key(object_id, key)

        try:
            keys.check_name(name)
            entry = keys.decode_entry(value)
        except (FilesystemError, struct.error):
            self._problem(directory, f"has an entry that cannot be: {name!r}", go)
            return 0
        if self._state.head(inode_object(entry.inode)) is None:
            if _group(entry.inode) in self._groups:
                told = f"{name!r} leads to inode {entry.inode:x}: there is none"
                self._problem(directory, told, go)
                return 0
            return entry.kind
        self._names.append(entry.inode)
        record = self._record(entry.inode)
        if record is None or record.mode >> 12 == entry.kind:
            return entry.kind
        kind = record.mode >> 12
        self._problem(
            directory,
            f"{name!r} has another type than inode {entry.inode:x}",
            lambda: self._repairs.put_entry(directory, name, entry.inode, kind),
        )
        return kind

    def _check_links(self, inode: int) -> None:
        record = self._record(inode)
        if record is None or inode == keys.ROOT:
            return
        names = bisect_right(self._names, inode) - bisect_left(self._names, inode)
        if not names and not record.nlink:
            self._check_orphan(inode)
        elif not names:
            self._problem(
                inode,
                f"has {record.nlink} links, but no name",
                (lambda: self._repairs.reattach(inode)) if self._repairs.can_reattach() else None,
            )
        elif record.is_directory and names > 1:
            self._problem(inode, f"is a directory with {names} names")
        elif not record.is_directory and names != record.nlink:
            self._problem(
                inode,
                f"has {names} names and {record.nlink} links",
                lambda: self._repairs.put_record(inode, nlink=names),
            )

    def _check_orphan(self, inode: int) -> None:
        if keys.ORPHAN not in (self._state.get(inode_object(inode), MARK) or b""):
            self._problem(
                inode,
                "has no name and nobody will delete it",
                lambda: self._repairs.mark_orphan(inode),
            )

    def _check_stripe(self, inode: int, stripe: int, object_id: ObjectId) -> None:
        def go() -> None:
            self._repairs.change(object_id, [Delete()])

        record = self._record(inode)
        if record is None:
            if _group(inode) in self._groups and self._state.head(inode_object(inode)) is None:
                self._problem(inode, f"does not exist, but its stripe {stripe} does", go)
        elif record.quota == inode and not stripe:
            return  # a quota's ledger
        elif not record.is_regular:
            self._problem(inode, f"is no file, but has data (stripe {stripe})", go)

    def _problem(self, inode: int, text: str, fix: Callable[[], None] | None = None) -> None:
        if not self._whole or self._checker.contents.outcomes.prepared:
            fix = None  # what is right may depend on what is elsewhere, or not decided yet
        self._checker.problem("namespace", f"inode {inode:x} {text}", fix)


def _group(inode: int) -> int:
    return group_of_inode(inode, MAX_GROUPS)
