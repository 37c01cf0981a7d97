"""The ranges that this node's parties hold and want: the truth about them. PURE.

What is asked of a name goes to the node that keeps its table, or is decided here while the table is
lent to us, without a message. On entering an epoch all is told to the keepers of that epoch; an
answer of an earlier one is void, for we have told that the request waits.

Whoever waits takes part in the search for deadlocks as soon as its transaction holds any range: who
holds nothing is in nobody's way.

Invariants (`validate`): a request is outstanding at its keeper (`sent`) or waits in a borrowed
table, never both; a table that is not borrowed has what we hold in it, and nobody waits there.
"""

from collections.abc import Iterable, Iterator, Sequence

from dlm.core.range_keeper import RANGE, Keeper, held_by
from dlm.core.range_past import Past
from dlm.core.range_table import Ask, Key, Span, Table
from dlm.core.situation import Situation
from dlm.effects import Answered
from dlm.events import (
    AskRange,
    CancelRange,
    FreeRange,
    GiveBack,
    Name,
    Owner,
    Party,
    RangeRequest,
)
from dlm.modes import Mode
from dlm.range_messages import (
    Held,
    How,
    Names,
    RangeAnswer,
    RangeAsk,
    RangeCancel,
    RangeFree,
    RangeFreed,
    RangeLent,
    RangeRecall,
    RangeReturn,
    RangeTell,
    Verdict,
    Wanted,
)

_PAGE = 200  # entries of each sort in one message
NAMES = 100  # told at once
_STATES = 2**32


class Used:
    """One name, as this node uses it."""

    __slots__ = ("borrowed", "keeper", "name", "sent", "table")

    def __init__(self, name: Name, keeper: int) -> None:
        self.name = name
        self.keeper = keeper
        self.borrowed = False
        self.table = Table()  # of our own parties
        self.sent: dict[int, RangeRequest] = {}  # not answered


class RangeUser:
    """This node's part in using ranges."""

    def __init__(self, here: Situation, keeper: Keeper) -> None:
        self._here = here
        self._keeper = keeper
        self.used: dict[Name, Used] = {}
        self.requests: dict[int, RangeRequest] = {}
        self.parties: dict[int, Party] = {}  # that hold or want anything
        self.unacknowledged: dict[int, Name] = {}  # what was freed and is not free for others yet
        self._quiet: dict[Owner, list[RangeRequest]] = {}  # waits of those who hold nothing
        self._holding: dict[Owner, set[int]] = {}  # its parties that hold anything
        self._serial = 0
        self.past = Past()
        self._untold: dict[Name, None] = {}  # names that their keepers have not been told of yet

    # -- this node's parties ---------------------------------------------------------------------

    def ask(self, event: AskRange) -> None:
        """Ask for a range."""
        here, request = self._here, event.request
        party = request.party
        if not party.number:
            party.number = here.waits.next_stamp()
        assert request.verdict is None
        assert not request.number
        request.number, request.asked_s = here.waits.next_stamp(), here.now_s
        self.requests[request.number] = request
        self.parties[party.number] = party
        used = self._used(party.name)
        self._begin_wait(request)
        if used.borrowed:
            self._decide(used, request)
        else:
            wanted = self._wanted(used, request)
            used.sent[request.number] = request
            if party.name not in self._untold:
                here.send(used.keeper, RangeAsk(here.epoch, wanted))

    def free(self, event: FreeRange) -> None:
        """Hold nothing there any more, whatever was held."""
        party = event.party
        used = self.used.get(party.name)
        if used is None or not used.table.free(self._key(party), event.start, event.last):
            return
        self._changed(party)
        if self._key(party) not in used.table.holders:
            self._holds_nothing(party)
        if used.borrowed:
            self._settle(used)
        else:
            self._tell_freed(used, party, event.start, event.last, Mode.NL)
        self._clean(used)
        self._forget(party)

    def cancel(self, event: CancelRange) -> None:
        """Let a request end early, if it still waits."""
        here, request = self._here, event.request
        if self.requests.get(request.number) is not request or request.cancelling:
            return
        used = self.used[request.party.name]
        if not used.borrowed and used.name in self._untold:
            self._finish(used, request, _cancelled(request))
            self._clean(used)
        elif not used.borrowed:
            request.cancelling = True
            here.send(used.keeper, RangeCancel(here.epoch, *used.name, request.number))
        elif used.table.withdraw(request.number, here.me) is not None:
            self._finish(used, request, _cancelled(request))
            self._settle(used)

    def give_back(self, event: GiveBack) -> None:
        """Return a table that is lent to us and has nothing in it."""
        here, used = self._here, self.used.get(event.name)
        if used is not None and used.borrowed and not used.table:
            used.borrowed = False
            here.send(used.keeper, RangeReturn(here.epoch, *used.name, (), ()))
            self._clean(used)

    def awaits(self, name: Name) -> bool:
        """Tell whether others may still believe that something is held which was freed."""
        return name in self.unacknowledged.values()

    def held(self, party: Party) -> list[Span]:
        """Return what a party holds, in order."""
        used = self.used.get(party.name)
        holder = None if used is None else used.table.holders.get(self._key(party))
        return [] if holder is None else [segment.span() for segment in holder.segments]

    # -- the keepers -----------------------------------------------------------------------------

    def answer(self, _sender: int, message: RangeAnswer) -> None:
        """Hear how a request ended."""
        if message.epoch != self._here.epoch:
            return
        request = self.requests.get(message.number)
        used = None if request is None else self.used.get(request.party.name)
        if request is None or used is None or message.number not in used.sent:
            self._here.misdirected += 1
            return
        verdict = message.verdict
        del used.sent[message.number]
        if verdict is Verdict.GRANTED:
            self._take(used, request)
        elif verdict is Verdict.CANCELLED:
            verdict = _cancelled(request)
        self._finish(used, request, verdict, message.conflict)
        self._clean(used)

    def freed(self, _sender: int, message: RangeFreed) -> None:
        """Hear that others may have what was freed."""
        if message.epoch == self._here.epoch:
            for serial in message.serials:
                self.unacknowledged.pop(serial, None)

    def lent(self, _sender: int, message: RangeLent) -> None:
        """Decide by ourselves from now on."""
        if message.epoch != self._here.epoch:
            return
        used = self._used(Name(message.root, message.leaf))
        used.borrowed = True
        sent, used.sent = used.sent, {}
        for _, request in sorted(sent.items()):
            if request.cancelling:
                self._finish(used, request, _cancelled(request))
            else:
                self._decide(used, request)

    def recall(self, sender: int, message: RangeRecall) -> None:
        """Return a table with all that is in it."""
        here, used = self._here, self.used.get(Name(message.root, message.leaf))
        if message.epoch != here.epoch or used is None or not used.borrowed:
            return
        waiting, used.table.waiting, used.borrowed = used.table.waiting, [], False
        for ask in waiting:
            used.sent[ask.number] = self.requests[ask.number]
        wanted = tuple(self._wanted(used, request) for request in used.sent.values())
        here.send(sender, RangeReturn(here.epoch, *used.name, tuple(self._held(used)), wanted))
        self._clean(used)

    def hurry(self, request: RangeRequest) -> None:
        """Let a request that waits here go before those it waits behind."""
        used = self.used[request.party.name]
        for ask in used.table.waiting:
            if ask.number == request.number:
                ask.hurried = True
        self._settle(used)

    # -- members ---------------------------------------------------------------------------------

    def enter(self) -> Iterator[None]:
        """Return the work of telling this epoch's keepers what we hold, want and have borrowed.

        To be done in slices. Until a name is told, nothing is said about it otherwise.
        """
        self._untold = dict.fromkeys(self.used)
        return self._tell_all()

    def _tell_all(self) -> Iterator[None]:
        here = self._here
        batches: dict[int, list[Name]] = {node: [] for node in here.members}
        for name in list(self._untold):
            keeper = here.directory_of(name.root)
            batches[keeper].append(name)
            if len(batches[keeper]) >= NAMES:
                self._tell(keeper, batches[keeper])
                batches[keeper] = []
            yield
        serials: dict[int, list[int]] = {node: [] for node in here.members}
        for serial, name in self.unacknowledged.items():
            serials[here.directory_of(name.root)].append(serial)
        for keeper, names in batches.items():
            self._tell(keeper, names, serials[keeper], last=True)

    def _tell(
        self, keeper: int, names: Iterable[Name], serials: Sequence[int] = (), *, last: bool = False
    ) -> None:
        """Tell a keeper of these names as they are now."""
        page = _Page(serials)
        for name in names:
            del self._untold[name]
            used = self.used.get(name)
            if used is None:
                continue
            used.keeper = keeper
            for request in [found for found in used.sent.values() if found.cancelling]:
                self._finish(used, request, _cancelled(request))
            if used.borrowed:
                page.borrowed.append(Names(*name))
            else:
                page.held += self._held(used)
                page.wanted += [self._wanted(used, request) for request in used.sent.values()]
            self._clean(used)
        for message in page.messages(self._here.epoch, last=last):
            self._here.send(keeper, message)

    def lose(self) -> None:
        """End all that waits."""
        for request in list(self.requests.values()):
            self._finish(self.used[request.party.name], request, Verdict.LOST)
        self.used.clear()
        self.parties.clear()
        self._untold.clear()
        self.unacknowledged.clear()
        self._holding.clear()

    # -- below -----------------------------------------------------------------------------------

    def _key(self, party: Party) -> Key:
        return self._here.me, party.number

    def _used(self, name: Name) -> Used:
        used = self.used.get(name)
        if used is None:
            here = self._here
            keeper = here.directory_of(name.root) if here.members else 0
            used = self.used[name] = Used(name, keeper)
        return used

    def _decide(self, used: Used, request: RangeRequest) -> None:
        """Decide a request in a table that is lent to us."""
        party = request.party
        span = Span(request.start, request.last, request.mode)
        ask = Ask(self._key(party), request.number, span, request.how, who=party.who, pid=party.pid)
        ask.since_s = request.asked_s
        verdict = used.table.request(ask)
        if verdict is None:
            return
        conflict = None
        if verdict is Verdict.GRANTED:
            self._took(used, party)
        elif verdict is Verdict.WOULD_BLOCK:
            found = used.table.conflict(ask)
            assert found is not None
            conflict = held_by(found[0], found[1], used.name, self._here.me)
        self._finish(used, request, verdict, conflict)
        if verdict is Verdict.GRANTED:
            self._settle(used)

    def _settle(self, used: Used) -> None:
        for ask in used.table.settle():
            request = self.requests[ask.number]
            self._took(used, request.party)
            self._finish(used, request, Verdict.GRANTED)

    def _take(self, used: Used, request: RangeRequest) -> None:
        """Hold what the keeper has granted."""
        party = request.party
        holder = used.table.hold(self._key(party), party.who, party.pid)
        weaker = holder.put(Span(request.start, request.last, request.mode))
        self._took(used, party)
        if weaker:
            self._tell_freed(used, party, request.start, request.last, request.mode)

    def _tell_freed(self, used: Used, party: Party, start: int, last: int, left: Mode) -> None:
        here = self._here
        party.freed = (party.freed + 1) % _STATES
        self._serial += 1
        self.unacknowledged[self._serial] = party.name
        if party.name in self._untold:
            return  # the last page says so
        pending = self._pending(used, party)
        message = RangeFree(
            here.epoch,
            *party.name,
            party.number,
            start,
            last,
            party.freed,
            self._serial,
            pending,
            left,
        )
        here.send(used.keeper, message)

    def _took(self, used: Used, party: Party) -> None:
        used.table.holders[self._key(party)].saw(())
        self._changed(party)
        owner = party.transaction
        if owner is None:
            return
        self._holding.setdefault(owner, set()).add(party.number)
        for request in self._quiet.pop(owner, ()):
            self._here.waits.begin((RANGE, request.number), owner, self._here.now_s)

    def _holds_nothing(self, party: Party) -> None:
        owner = party.transaction
        if owner is not None and owner in self._holding:
            self._holding[owner].discard(party.number)
            if not self._holding[owner]:
                del self._holding[owner]

    def _changed(self, party: Party) -> None:
        party.turn = self._here.waits.next_stamp()

    def _begin_wait(self, request: RangeRequest) -> None:
        owner = request.party.transaction
        if owner is None or request.how is not How.WAIT:
            return
        if self._holding.get(owner):
            self._here.waits.begin((RANGE, request.number), owner, self._here.now_s)
        else:
            self._quiet.setdefault(owner, []).append(request)

    def _finish(
        self, used: Used, request: RangeRequest, verdict: Verdict, conflict: Held | None = None
    ) -> None:
        here = self._here
        del self.requests[request.number]
        used.sent.pop(request.number, None)
        here.waits.end(RANGE, request.number)
        owner = request.party.transaction
        if owner is not None and request in self._quiet.get(owner, ()):
            self._quiet[owner].remove(request)
            if not self._quiet[owner]:
                del self._quiet[owner]
        request.verdict, request.conflict = verdict, conflict
        if verdict is Verdict.GRANTED:
            span = Span(request.start, request.last, request.mode)
            self.past.note(request.party.name, span, here.epoch)
        self._forget(request.party)
        here.effects.append(Answered(request))

    def _forget(self, party: Party) -> None:
        """Forget a party that neither holds nor wants anything."""
        if not self.held(party) and all(r.party is not party for r in self.requests.values()):
            self.parties.pop(party.number, None)

    def _clean(self, used: Used) -> None:
        """Forget what is of no use any more."""
        if not (used.borrowed or used.sent or used.table):
            del self.used[used.name]

    def _pending(self, used: Used, party: Party) -> tuple[int, ...]:
        return tuple(number for number, found in used.sent.items() if found.party is party)

    def _wanted(self, used: Used, request: RangeRequest) -> Wanted:
        party = request.party
        return Wanted(
            *used.name,
            request.number,
            party.number,
            request.start,
            request.last,
            request.mode,
            request.how,
            party.pid,
            party.who,
            party.freed,
            tuple(n for n in self._pending(used, party) if n != request.number),
        )

    def _held(self, used: Used) -> Iterator[Held]:
        for (_, number), holder in used.table.holders.items():
            holder.freed = self.parties[number].freed
            for segment in holder.segments:
                yield held_by(holder, segment, used.name)

    def validate(self) -> None:
        """Assert the invariants; for tests, and only between two events."""
        for name, used in self.used.items():
            assert used.name == name
            assert not (used.borrowed and used.sent), name
            assert used.borrowed or not used.table.waiting, name
            assert used.borrowed or used.sent or used.table, name
            used.table.validate()
        waiting = {ask.number for used in self.used.values() for ask in used.table.waiting}
        sent = {number for used in self.used.values() for number in used.sent}
        assert waiting | sent == self.requests.keys()


class _Page:
    """What one keeper is told."""

    def __init__(self, serials: Sequence[int]) -> None:
        self.borrowed: list[Names] = []
        self.held: list[Held] = []
        self.wanted: list[Wanted] = []
        self.serials = serials

    def messages(self, epoch: int, *, last: bool) -> Iterator[RangeTell]:
        """Yield it in pieces."""
        lists = self.borrowed, self.held, self.wanted, self.serials
        longest = max(len(entries) for entries in lists)
        for first in range(0, max(1, longest), _PAGE):
            cut = slice(first, first + _PAGE)
            yield RangeTell(
                epoch,
                tuple(self.borrowed[cut]),
                tuple(self.held[cut]),
                tuple(self.wanted[cut]),
                tuple(self.serials[cut]),
                last=last and first + _PAGE >= longest,
            )


def _cancelled(request: RangeRequest) -> Verdict:
    return Verdict.DEADLOCK if request.story else Verdict.CANCELLED
