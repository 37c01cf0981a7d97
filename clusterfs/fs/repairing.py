"""What fsck changes in the filesystem's objects of one brick, one object at a time.

Every change gives the object a version that no client ever gives: its counter jumps. So a brick
that was repaired alone differs from the others by version, not silently, and whoever rejoins takes
the others' state; bricks of one content that are all repaired stay equal.

Invariant: a repair depends on nothing but the brick's content.
"""

import stat
from collections.abc import Sequence

from clusterfs.fs import attributes, keys
from clusterfs.store.objects import ABSENT, MARK, Delete, ObjectId, Put, Remove, Version
from clusterfs.store.objects import inode_object as object_of
from clusterfs.store.records import ResolvedChange
from clusterfs.store.state import State

LOST_FOUND = b"lost+found"
LOST_FOUND_INODE = 2  # beside the root: no client makes up such a number
_JUMP = 1 << 32  # of the version's counter
_MODE = stat.S_IFDIR | 0o700


class Repairs:
    """The repairs of one brick; each is made at once, in memory."""

    def __init__(self, state: State) -> None:
        self._state = state

    def change(self, object_id: ObjectId, operations: Sequence[Put | Remove | Delete]) -> None:
        """Change an object that exists."""
        head = self._state.head(object_id)
        assert head is not None, object_id.hex()
        version = Version(head.version.epoch, head.version.counter + _JUMP)
        self._state.perform(
            ResolvedChange(object_id, head.group, head.version, version, list(operations))
        )

    def remove_key(self, object_id: ObjectId, key: bytes) -> None:
        """Take an entry out that leads nowhere or cannot be."""
        self.change(object_id, [Remove(key)])

    def put_entry(self, directory: int, name: bytes, inode: int, kind: int) -> None:
        """Let a name lead to an inode of that type."""
        entry = keys.encode_entry(keys.Entry(inode, kind))
        self.change(object_of(directory), [Put(keys.ENTRY + name, entry)])

    def put_record(self, inode: int, **fields: int) -> None:
        """Change some attributes."""
        record = self._record(inode).changed(**fields)
        stored = attributes.encode(record, record.size)
        self.change(object_of(inode), [Put(keys.RECORD, stored)])

    def mark_orphan(self, inode: int) -> None:
        """Let a running node delete an inode that has no name."""
        mark = self._state.get(object_of(inode), MARK)
        orphan = keys.ORPHAN_TRUNCATING if mark == keys.TRUNCATING else keys.ORPHAN
        self.change(object_of(inode), [Put(MARK, orphan)])

    def can_reattach(self) -> bool:
        """Tell whether there is, or can be, a directory /lost+found here."""
        stored = self._state.get(object_of(keys.ROOT), keys.ENTRY + LOST_FOUND)
        if stored is None:
            return self._state.head(object_of(keys.ROOT)) is not None
        entry = keys.decode_entry(stored)
        return entry.is_directory and self._state.head(object_of(entry.inode)) is not None

    def reattach(self, inode: int) -> None:
        """Give an inode without a name one in /lost+found."""
        record, place = self._record(inode), self._lost_found()
        name = b"#%x" % inode
        self.put_entry(place, name, inode, record.mode >> 12)
        if record.is_directory:
            self.put_record(inode, parent=place)
            self.put_record(place, nlink=self._record(place).nlink + 1)
        else:
            self.put_record(inode, nlink=1)

    def _lost_found(self) -> int:
        stored = self._state.get(object_of(keys.ROOT), keys.ENTRY + LOST_FOUND)
        if stored is not None:
            return keys.decode_entry(stored).inode
        head = self._state.head(object_of(keys.ROOT))
        assert head is not None
        now_ns = self._record(keys.ROOT).mtime_ns
        record = attributes.fresh(_MODE, 0, 0, now_ns, seed=LOST_FOUND_INODE, parent=keys.ROOT)
        operations = [Put(keys.RECORD, attributes.encode(record, 0))]
        place = object_of(LOST_FOUND_INODE)
        version = Version(head.version.epoch, _JUMP)
        self._state.perform(ResolvedChange(place, head.group, ABSENT, version, operations))
        self.put_entry(keys.ROOT, LOST_FOUND, LOST_FOUND_INODE, keys.DIRECTORY)
        self.put_record(keys.ROOT, nlink=self._record(keys.ROOT).nlink + 1)
        return LOST_FOUND_INODE

    def _record(self, inode: int) -> attributes.Record:
        stored = self._state.get(object_of(inode), keys.RECORD)
        assert stored is not None, f"inode {inode:x}"
        return attributes.decode(stored)
