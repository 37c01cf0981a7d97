"""A resource by the rules of o2dlm: new requests overtake those that wait. PURE.

From fs/ocfs2/dlm (dlm_can_grant_new_lock, dlmconvert_master, dlm_shuffle_lists). A request that has
just arrived looks only at what is granted and at both modes of what converts, so it may overtake
others that wait. If it does not fit it is queued, and then the first of each queue is looked at,
where of what converts only the held mode counts. No conversion deadlock is refused or broken: all
in it are told that they are in the way, converting ones too, and one has to cancel.
"""

from collections.abc import Iterable, Iterator

from dlm.core.master_copy import Copy
from dlm.core.resource import Resource, Send
from dlm.modes import Flags, Mode

# The other flags count for nothing.
_KNOWN = int(Flags.NOQUEUE | Flags.VALBLK | Flags.IVVALBLK | Flags.NODLCKWT | Flags.NODLCKBLK)


class OvertakingResource(Resource):
    """Queues and value block of one resource, as in o2dlm."""

    __slots__ = ()

    def request(self, copy: Copy, send: Send) -> None:
        """Grant, queue or refuse a new lock; then look at the heads of the queues."""
        copy.flags &= _KNOWN
        super().request(copy, send)
        self.settle(send)

    def convert(self, copy: Copy, mode: Mode, flags: int, lvb: bytes | None, send: Send) -> None:
        """Grant, queue or refuse a change of mode; then look at the heads of the queues."""
        super().convert(copy, mode, flags & _KNOWN, lvb, send)
        self.settle(send)

    def restore(self, copies: Iterable[Copy]) -> None:
        """Fill the empty queues with copies that other nodes reported; then call `settle`."""
        copies = tuple(copies)
        for copy in copies:
            copy.flags &= _KNOWN
        super().restore(copies)

    def _fits(self, copy: Copy, *, now: bool, recover: bool = False) -> bool:
        if self._conflicts(copy):
            return False
        if now:
            return not any(self._goes_against(copy, other) for other in self.converting)
        if copy.granted is None:
            return self.waiting[0] is copy
        return recover or self.converting[0] is copy

    def _goes_against(self, copy: Copy, other: Copy) -> bool:
        assert copy.requested is not None
        assert other.requested is not None
        return other is not copy and not other.requested.compatible(copy.requested)

    def _deadlocked(self, copy: Copy) -> Copy | None:
        del copy
        return None

    def _queued_before(self, copy: Copy) -> Iterator[Copy]:
        for other in self.waiting if copy.granted is None else self.converting:
            if other is copy:
                return
            yield other

    def _told(self) -> Iterable[Copy]:
        return (*self.granted, *self.converting)
