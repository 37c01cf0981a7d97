"""As owner: what a new master of a root must know of our locks, and going on under it. PURE.

We tell our locks to whoever may become the master, and keep what we do to them after each telling.
The one that says it has the root, as of one of these tellings, hears the rest.
"""

from collections.abc import Iterator

from dlm.core.own_lock import Root, record
from dlm.core.ownership import Ownership
from dlm.core.situation import Situation
from dlm.events import Lock
from dlm.messages import Demote, Message, Record, Reign, Reigns, Unlock
from dlm.modes import Flags
from dlm.moving import Freeze, Frozen

_CONVDEADLK = int(Flags.CONVDEADLK)


class Succession:
    """The way of this node's locks from one master to the next."""

    def __init__(self, here: Situation, ownership: Ownership) -> None:
        self._here = here
        self._owned = ownership

    def mark(self, root: bytes, tag: int) -> None:
        """From now on our locks under this root are told; what is done to them since counts."""
        known = self._owned.roots[root]
        known.marks[tag] = len(known.log)

    def records(self, root: bytes) -> Iterator[Record]:
        """Yield our locks under `root` for a new master: what it cannot know otherwise.

        What no master has acknowledged is asked again afterwards, except that a conversion that
        may have changed the mode at the master is told with sequence 0.
        """
        locks = self._owned.roots[root].locks
        for lock in tuple(locks.values()):
            if lock.id in locks:
                yield record(lock)

    def freeze(self, sender: int, message: Freeze) -> None:
        """Say nothing more under this root until somebody reigns again.

        We do not consent if the one to come is lost already: no view to come would make us tell our
        locks because of that.
        """
        here, known = self._here, self._owned.roots.get(message.root)
        target = message.target, message.incarnation
        if known is not None and known.term == message.former:
            known.moving = target
            self.mark(message.root, message.term)
        here.send(sender, Frozen(message.term, message.root, here.alive(*target)))

    def reigns(self, sender: int, message: Reigns) -> None:
        """Go on under the new masters of these roots."""
        resumed: dict[bytes, None] = {}  # in their order, in every run
        for reign in message.reigns:
            known = self._owned.roots.get(reign.root)
            if known is not None and message.tag in known.marks:
                self._begin_reign(known, sender, message.tag, reign)
                resumed[reign.root] = None
        for lock in tuple(self._owned.pending.values()):
            if lock.name.root in resumed:
                self._resume(lock)
        for root in resumed:
            self._replay(root)

    def _begin_reign(self, known: Root, sender: int, tag: int, reign: Reign) -> None:
        here = self._here
        assert reign.term >= known.term or not reign.term
        assert reign.term or not known.locks
        done = known.log[known.marks[tag] :]
        known.master, known.incarnation = sender, here.members[sender]
        known.term, known.moving = reign.term, None
        known.marks.clear()
        known.log.clear()
        for message in done:
            if isinstance(message, Unlock):
                told: Message = Unlock(reign.term, message.lock, message.flags, message.lvb)
            else:
                told = Demote(reign.term, message.lock, message.mode, message.flags, message.lvb)
            here.send(sender, told)

    def _replay(self, root: bytes) -> None:
        """Forget the root if it is not needed any more, and hear what came early for it."""
        known = self._owned.roots[root]
        early, known.early = known.early, []
        if not known.locks:
            del self._owned.roots[root]
        self._owned.hear(early)

    def _resume(self, lock: Lock) -> None:
        """Ask for what the new master does not know of."""
        if lock.granted is None and not lock.sequence:
            self._owned.ask(lock)
        elif not lock.sequence:
            lock.demoted = bool(lock.flags & _CONVDEADLK)  # perhaps, and nobody knows
            self._owned.convert(lock)
        if lock.cancelling and (lock.sequence or lock.granted is not None):
            self._owned.cancel(lock)
