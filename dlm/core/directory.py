"""This node's share of the directory: who masters which root, for the roots that hash to us. PURE.

The share moves with the members: a root's new directory node learns its master from the master.
Until all members have told theirs for an epoch, we answer only what we know for sure: what has been
told in this epoch, and the part of our share that has been ours without a break since we knew all.
The rest of the requests wait here.

A root that nobody is known to master may have been made up by a member that has not told us yet: it
is asked first, where the root tells who that was; while it is leaving, requests wait for its end.
Else the requester becomes the master, once the root's gate is open: somebody who is gone may have
mastered it, and held it.

A tree without locks is removed when its master has seen all that we forwarded to it: we count what
we forward to each start of a node, and the master says how many it has seen. If a forward is still
on its way we say nothing, for it calls the removal off.
"""

from collections.abc import Container, Iterable

from dlm.core.situation import Situation, directory_among
from dlm.messages import (
    Claim,
    Claimed,
    Mastered,
    Reign,
    Remove,
    Removed,
    Request,
    Route,
    Seat,
    Verify,
)
from dlm.moving import Move, Noted

_VERIFY_PAGE = 500


class Entry:
    """A root's record on its directory node."""

    __slots__ = ("epoch", "last_forward", "master", "term")

    def __init__(self, master: tuple[int, int], term: int, epoch: int) -> None:
        self.master = master  # node and incarnation
        self.term = term
        self.epoch = epoch  # in which we were told last
        self.last_forward = 0  # number of the last request that we forwarded to the master


class Directory:
    """Our share, and the requests that wait until we know."""

    def __init__(self, here: Situation) -> None:
        self._here = here
        self.entries: dict[bytes, Entry] = {}
        self.held: dict[bytes, list[Request]] = {}
        self.orphans: Container[bytes] = ()  # roots without a master that are being rebuilt here
        self.unsettled: set[bytes] = set()  # were still without a master when the members changed
        self.complete = False  # everybody has told us all, for this epoch
        self._forwarded: dict[tuple[int, int], int] = {}  # requests, by start of a node
        self._shares: list[tuple[int, tuple[int, ...] | None]] = []  # epoch, members; None: unseen
        self._all_since: int | None = None  # the last epoch in which we knew all
        self._swept = False

    # -- a change of members ---------------------------------------------------------------------

    def enter(self, *, skipped: bool) -> None:
        """Know again only what we have known without a break."""
        here = self._here
        if skipped:
            self._shares.append((here.epoch, None))
        self._shares.append((here.epoch, tuple(here.members)))
        self.complete = self._swept = False
        self._forwarded = {
            start: count for start, count in self._forwarded.items() if here.alive(*start)
        }
        held, self.held = self.held, {}
        for requests in held.values():
            for request in requests:
                self.ask(request)

    def completed(self) -> None:
        """Everybody has told us all."""
        self.complete = True
        self.unsettled.clear()
        self._all_since = self._here.epoch

    def sweep(self) -> Iterable[None]:
        """Forget, step by step, what is not ours any more; then all of our share is known."""
        here = self._here
        doubtful: dict[int, list[Reign]] = {}
        skipped = any(members is None for _, members in self._shares)
        for root, entry in tuple(self.entries.items()):
            yield
            if self.entries.get(root) is not entry or self.known(root) is None:
                continue
            if self._is_over(root, entry):
                del self.entries[root]
            else:
                if skipped and entry.epoch < here.epoch:
                    doubtful.setdefault(entry.master[0], []).append(Reign(root, entry.term))
                entry.epoch = here.epoch
        for node, reigns in doubtful.items():
            for first in range(0, len(reigns), _VERIFY_PAGE):
                here.send(node, Verify(here.epoch, tuple(reigns[first : first + _VERIFY_PAGE])))
        self._shares = [(here.epoch, tuple(here.members))]
        self._swept = True

    def retry(self, root: bytes) -> None:
        """Look again at the requests that wait for this root."""
        for request in self.held.pop(root, ()):
            self.ask(request)

    def retry_all(self) -> None:
        """Look again at all requests that wait."""
        for root in tuple(self.held):
            self.retry(root)

    # -- what others ask and tell ----------------------------------------------------------------

    def ask(self, request: Request) -> None:
        """Let the requester master a new root, forward for a known one, wait if in doubt."""
        here, root = self._here, request.root
        if not here.alive(request.origin, request.incarnation):
            return
        node = here.directory_of(root)
        if node != here.me:
            here.send(node, routed(request, Route.ASK, here.epoch, 0))
            return
        entry = self.known(root)
        if entry is not None and self._is_over(root, entry):
            del self.entries[root]
            entry = None
        if entry is not None:
            if here.alive(*entry.master):
                self._forward(entry, request)
            else:
                self.held.setdefault(root, []).append(request)
        elif self._surely_new(root):
            if self._left_to_the_maker(request):
                return
            start = (request.origin, request.incarnation)
            entry = self.entries[root] = Entry(start, here.new_term(), here.epoch)
            here.send(request.origin, Mastered(here.epoch, request.lock, root, entry.term))
        else:
            self.held.setdefault(root, []).append(request)

    def told(self, seat: Seat) -> None:
        """Take a master's word for what it masters."""
        here, root = self._here, seat.root
        if here.directory_of(root) != here.me:
            return
        entry = self.known(root)
        if entry is None or seat.term > entry.term:
            self._note(root, seat)
        elif seat.term == entry.term:
            entry.epoch = here.epoch
        self.retry(root)

    def claim(self, sender: int, message: Claim) -> None:
        """Learn who masters roots that are new."""
        here = self._here
        for reign in message.reigns:
            seat = Seat(reign.root, reign.term, sender, here.members[sender])
            self.told(seat)
        here.send(sender, Claimed(here.epoch, len(message.reigns)))

    def claimed_here(self, root: bytes, term: int) -> None:
        """Note that we master a root that was new, and now is in our share."""
        here = self._here
        self.told(Seat(root, term, here.me, here.incarnation))

    def move(self, sender: int, message: Move) -> None:
        """Forget a former master, whose successor may have told us of itself already, or not yet.

        It may even have had the tree removed since: then it is to say so again.
        """
        here, root = self._here, message.root
        if here.directory_of(root) != here.me:
            return  # the sender learns of it, and tells the right one
        entry = self.entries.get(root)
        if entry is not None and entry.term < message.term:
            seat = Seat(root, message.term, message.target, message.incarnation)
            self._note(root, seat)
            if here.alive(message.target, message.incarnation):
                here.send(message.target, Verify(here.epoch, (Reign(root, message.term),)))
            self.retry(root)
        here.send(sender, Noted(here.epoch, root, message.term))

    def remove(self, sender: int, message: Remove) -> None:
        """Forget an entry unless a forward is still on its way to the master."""
        here, root = self._here, message.root
        if here.directory_of(root) != here.me:
            return  # its master tells the right one
        entry = self.known(root)
        if entry is not None and entry.term == message.term:
            if entry.last_forward > message.forwards:
                return
            del self.entries[root]
        elif entry is not None and entry.term < message.term:
            return
        here.send(sender, Removed(here.epoch, root, message.term))

    def adopted(self, root: bytes) -> bool:
        """Tell whether a root that owners believe without a master has, or gets, one elsewhere."""
        entry = self.known(root)
        return entry is not None and self._here.alive(*entry.master)

    def seat_here(self, root: bytes, above: int) -> int:
        """Note that we master the root from now on, under the term returned."""
        here = self._here
        entry = self.entries.get(root)
        term = here.new_term(max(above, entry.term if entry is not None else 0))
        self.entries[root] = Entry((here.me, here.incarnation), term, here.epoch)
        return term

    def known(self, root: bytes) -> Entry | None:
        """Return what we know for sure of a root that is in our share."""
        entry = self.entries.get(root)
        if entry is None or self._swept or entry.epoch == self._here.epoch:
            return entry
        if not self._unbroken(root, entry.epoch + 1, unseen=True):
            del self.entries[root]  # it was in another one's share meanwhile
            return None
        if self.complete or self._unbroken(root, entry.epoch + 1, unseen=False):
            return entry
        return None

    def clear(self) -> None:
        """Forget all."""
        self.entries.clear()
        self.held.clear()
        self.unsettled.clear()

    # -- below -----------------------------------------------------------------------------------

    def _unbroken(self, root: bytes, since: int, *, unseen: bool) -> bool:
        """Tell whether the root was in our share in all epochs since; `unseen` if we missed one."""
        me = self._here.me
        return all(
            unseen if members is None else directory_among(members, root) == me
            for epoch, members in self._shares
            if epoch >= since
        )

    def _surely_new(self, root: bytes) -> bool:
        if root in self.orphans or not self._here.opened(root):
            return False
        if root in self.unsettled:
            return False
        since = self._all_since
        return self.complete or (since is not None and self._unbroken(root, since, unseen=False))

    def _left_to_the_maker(self, request: Request) -> bool:
        """Ask whoever may have made the root up, or wait for its end if it is leaving."""
        here, maker = self._here, self._here.maker_of(request.root)
        own = (None, here.incarnation, request.incarnation)
        if maker in own or request.route is Route.UNMADE:
            return False
        if maker in here.leaving.values():
            self.held.setdefault(request.root, []).append(request)
            return True
        for node, start in here.members.items():
            if start == maker:
                here.send(node, routed(request, Route.MAKER, here.epoch, 0))
                return True
        return False

    def _is_over(self, root: bytes, entry: Entry) -> bool:
        """Tell whether nobody masters it any more, and nobody holds anything under it."""
        here = self._here
        if not self.complete or root in self.orphans:
            return False
        return not here.alive(*entry.master)

    def _forward(self, entry: Entry, request: Request) -> None:
        here, start = self._here, entry.master
        number = self._forwarded.get(start, 0) + 1
        self._forwarded[start] = entry.last_forward = number
        here.send(start[0], routed(request, Route.FORWARDED, here.epoch, entry.term))

    def _note(self, root: bytes, seat: Seat) -> None:
        here = self._here
        here.term = max(here.term, seat.term)  # a master may have made it
        before = self.entries.get(root)
        entry = self.entries[root] = Entry((seat.master, seat.incarnation), seat.term, here.epoch)
        if before is not None and before.master == entry.master:
            entry.last_forward = before.last_forward  # it may still be on its way


def routed(request: Request, route: Route, epoch: int, term: int) -> Request:
    """Return the request as it goes on its next hop."""
    return Request(
        epoch,
        request.origin,
        request.lock,
        request.root,
        request.leaf,
        request.mode,
        request.flags,
        request.owner,
        route,
        request.incarnation,
        term,
    )
