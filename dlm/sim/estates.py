"""What the dead may have held: nobody may use it before the gate of its group has opened.

A world rolls forward, group by group, what a lost node did last; until it has done so for a root's
group, nobody is granted there what conflicts with what the node held in a mode to write with.
"""

from typing import TYPE_CHECKING, Final

import msgspec

from dlm.events import Lock, Name
from dlm.modes import Mode

if TYPE_CHECKING:
    from dlm.sim.world import Machine

GROUPS: Final = 2
_WRITERS: Final = (Mode.CW, Mode.PW, Mode.EX)


def group_of(root: bytes) -> int:
    """Return the group that a root is in."""
    return sum(root) % GROUPS


class _Held(msgspec.Struct):
    incarnation: int
    mode: Mode


class Estates:
    """What those who are gone held when they went, as far as it is not rolled forward yet."""

    def __init__(self) -> None:
        self.losses: list[int] = []  # the epochs in which somebody was left out
        self.rolled = [0] * GROUPS  # the last of these that a group has behind it
        self.waited = 0  # grants that would have been wrong a little earlier
        self.complaints: list[str] = []
        self._left_out: dict[int, int] = {}  # in which epoch, by incarnation
        self._held: dict[Name, list[_Held]] = {}

    def bury(self, machine: "Machine") -> None:
        """This machine is gone; remember what it could write."""
        for lock in machine.core.ownership.locks.values():
            if lock.mode in _WRITERS:
                held = _Held(machine.incarnation, lock.mode)
                self._held.setdefault(lock.name, []).append(held)

    def leave_out(self, incarnations: list[int], epoch: int) -> bool:
        """These are no members from that epoch on; tell whether it is a loss."""
        new = [i for i in incarnations if i not in self._left_out]
        self._left_out.update(dict.fromkeys(new, epoch))
        if new:
            self.losses.append(epoch)
        return bool(new)

    def last_loss(self, epoch: int) -> int:
        """Return the last epoch up to that one in which somebody was left out."""
        return max((loss for loss in self.losses if loss <= epoch), default=0)

    def granted(self, lock: Lock) -> None:
        """Somebody may use a lock from now on."""
        assert lock.mode is not None
        for held in self._held.get(lock.name, ()):
            if lock.mode.compatible(held.mode):
                continue
            left_out = self._left_out.get(held.incarnation)
            if left_out is None or self.rolled[group_of(lock.name.root)] < left_out:
                self.complaints.append(f"{lock} is used before its gate has opened: {held}")
            self.waited += 1
