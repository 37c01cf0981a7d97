"""What this node's client committed and does not know to be on all disks: where it lies. PURE.

Invariant: a group is listed for an inode while a transaction on the inode, or on a stripe of it,
that is acknowledged and above the stable watermark, touched that group.
"""

from collections.abc import Collection, Iterable

from clusterfs.store.objects import Change, split_object_id


class Unsynced:
    """Groups by inode, each with the sequence of the last transaction."""

    def __init__(self) -> None:
        self._groups: dict[int, dict[int, int]] = {}

    def note(self, changes: Iterable[Change], sequence: int) -> None:
        """Say that a transaction is acknowledged."""
        for change in changes:
            inode, _ = split_object_id(change.object_id)
            self._groups.setdefault(inode, {})[change.group] = sequence

    def groups(self, inodes: Collection[int]) -> set[int]:
        """Return where something of these inodes may not be on all disks."""
        return {group for inode in inodes for group in self._groups.get(inode, ())}

    def stable(self, sequence: int) -> None:
        """Say that all transactions up to this one are on all disks."""
        for inode, groups in list(self._groups.items()):
            for group in [group for group, last in groups.items() if last <= sequence]:
                del groups[group]
            if not groups:
                del self._groups[inode]

    def clear(self) -> None:
        """Forget everything: another incarnation begins."""
        self._groups.clear()
