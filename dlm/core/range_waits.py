"""Ranges as things that are waited for: what the search for deadlocks asks about them. PURE."""

from collections.abc import Iterable, Iterator

from dlm.core.range_keeper import Keeper, blocker, once_each
from dlm.core.range_user import RangeUser, Used
from dlm.core.situation import Situation
from dlm.events import CancelRange, Name, Owner
from dlm.messages import Blocker
from dlm.range_messages import RangeHurry


class RangeWaits:
    """Answers for the requests of this node's parties, and for those that are queued here."""

    def __init__(self, here: Situation, keeper: Keeper, user: RangeUser) -> None:
        self._here = here
        self._keeper = keeper
        self._user = user

    def hurry(self, _sender: int, message: RangeHurry) -> None:
        """Let a request go before others: one of ours, or one that is queued here."""
        here = self._here
        if message.node != here.me:
            self._keeper.hurry(message.node, message.number)
            return
        request = self._user.requests.get(message.number)
        used = None if request is None else self._user.used.get(request.party.name)
        if used is None or request is None:
            return
        if used.borrowed:
            self._user.hurry(request)
        elif used.keeper == here.me:
            self._keeper.hurry(here.me, message.number)
        else:
            here.send(used.keeper, message)

    def host(self, number: int) -> int | None:
        """Return who queues a request."""
        used = self._used_by(number)
        if used is None:
            return None
        return self._here.me if used.borrowed else used.keeper

    def blockers(self, node: int, number: int) -> Iterable[tuple[int, Blocker]]:
        """Yield what keeps a request that is queued here waiting, with the home of each."""
        used = self._used_by(number) if node == self._here.me else None
        if used is None or not used.borrowed:
            return self._keeper.blockers(node, number)
        return self._blockers_here(used, number)

    def _blockers_here(self, used: Used, number: int) -> Iterator[tuple[int, Blocker]]:
        for ask in used.table.waiting:
            if ask.number == number:
                for holder, behind in once_each(used.table, ask):
                    freed = self._user.parties[holder.key[1]].freed
                    yield self._here.me, blocker(holder, freed, behind)
                return

    def waits(self, number: int, _place: int) -> bool:
        """Tell whether a request still waits for good."""
        request = self._user.requests.get(number)
        return request is not None and not request.cancelling

    def holders(self, number: int, state: int) -> Iterable[tuple[Owner, int]]:
        """Return whose ranges these are; nobody's, if the keeper does not know what was freed."""
        party = self._user.parties.get(number)
        if party is None or party.transaction is None or party.freed != state:
            return ()
        return ((party.transaction, party.turn),) if self._user.held(party) else ()

    def wants(self, number: int) -> str:
        """Say what is waited for."""
        request = self._user.requests[number]
        return f"{request.mode.name} on {_words(request.start, request.last, request.party.name)}"

    def holds(self, number: int) -> str:
        """Say what is held, or the first of it."""
        party = self._user.parties[number]
        return ", ".join(
            f"{mode.name} on {_words(start, last, party.name)}"
            for start, last, mode in self._user.held(party)[:3]
        )

    def give_up(self, number: int, story: str) -> None:
        """End a wait as the victim of the deadlock that `story` tells."""
        request = self._user.requests.get(number)
        if request is not None:
            request.story = story
            self._user.cancel(CancelRange(request))

    def overtake(self, node: int, number: int) -> bool:
        """Let a request not wait for those before it any more."""
        self._here.send(node, RangeHurry(self._here.epoch, node, number))
        return True

    def _used_by(self, number: int) -> Used | None:
        request = self._user.requests.get(number)
        return None if request is None else self._user.used.get(request.party.name)


def _words(start: int, last: int, name: Name) -> str:
    return f"bytes {start}..{last} of {name.spelt()}"
