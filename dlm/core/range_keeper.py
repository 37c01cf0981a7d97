"""The tables of ranges that this node keeps: of the roots that it is directory node of. PURE.

A table that only one node uses is lent to it, and is recalled when another node asks. What is kept
here is nothing but the sum of what holders know: on entering an epoch it is thrown away, each
member tells anew what it holds, wants and has borrowed (RangeTell), and when all have told, what
waits is decided. A word of another epoch is void at both ends, so a grant counts only if its holder
heard of it in time to tell of it.

While a member is leaving, what it holds is still its own. It cannot tell it, so what we knew of it
stays; names that another node kept then, or that we had not been told all of, wait until it is
gone.

Invariants (`validate`): a table that is lent is empty here; once all have told, nobody waits who
could be granted.
"""

from collections import OrderedDict
from collections.abc import Iterator

from dlm.core.range_table import Ask, Holder, Key, Segment, Span, Table
from dlm.core.situation import Situation, directory_among
from dlm.events import Name
from dlm.fields import WORDS
from dlm.messages import Blocker
from dlm.range_messages import (
    Held,
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

RANGE = 1  # the kind of thing that is waited for; 0 is a lock
LEND_AFTER = 8  # requests in a row of one node, where others have asked before
_REMEMBERED = 4096  # names that more than one node has used


class Kept:
    """One name's table."""

    __slots__ = ("asked_by", "borrower", "contended", "name", "pending", "recalled", "row", "table")

    def __init__(self, name: Name) -> None:
        self.name = name
        self.table = Table(remote=True)
        self.borrower = 0  # a node; < 0: the incarnation of one that is leaving
        self.recalled = False
        self.pending: list[Ask] = []  # not looked at yet
        self.contended = False  # more than one node has used it lately
        self.asked_by = 0  # the last one
        self.row = 0  # requests of that one in a row

    def asked(self, node: int) -> None:
        """Note who uses it."""
        self.row = self.row + 1 if node == self.asked_by else 1
        self.asked_by = node

    def may_lend(self, node: int) -> bool:
        """Tell whether nobody else uses it."""
        if self.contended and self.row < LEND_AFTER:
            return False
        others = self.table.nodes() | {ask.holder[0] for ask in self.pending}
        return others <= {node}

    def withdraw_pending(self, number: int, node: int) -> Ask | None:
        """Forget a request that nobody has looked at yet, if it is one."""
        for place, ask in enumerate(self.pending):
            if ask.number == number and ask.holder[0] == node:
                return self.pending.pop(place)
        return None


class Keeper:
    """One node's part in keeping the tables."""

    def __init__(self, here: Situation) -> None:
        self._here = here
        self.tables: dict[Name, Kept] = {}
        self.missing: set[int] = set()  # who has not told all yet
        self.recalls = self.lent = 0
        self._acks: dict[int, list[int]] = {}
        self._left: dict[int, dict[Name, Kept]] = {}  # by incarnation of those that are leaving
        self._witnessed: dict[int, tuple[int, ...] | None] = {}  # the members when that one was
        self._former: OrderedDict[Name, tuple[int, int]] = OrderedDict()

    # -- members ---------------------------------------------------------------------------------

    def enter(self, old: dict[int, int]) -> None:
        """Begin anew; `old` are the members of the epoch that has ended."""
        here = self._here
        complete = bool(old) and not self.missing
        for node, incarnation in old.items():
            if here.leaving.get(node) == incarnation:
                self._witnessed[incarnation] = tuple(old) if complete else None
                self._left[incarnation] = self._known_of(node, incarnation)
        leaving = set(here.leaving.values())
        for incarnation in leaving:
            self._witnessed.setdefault(incarnation, None)
        for incarnation in self._witnessed.keys() - leaving:
            del self._witnessed[incarnation]
            self._left.pop(incarnation, None)
        self.tables = {}
        self._acks = {}
        self.missing = set(here.members)
        for found in self._left.values():
            for name, left in found.items():
                kept = self._kept(name)
                kept.table.holders |= left.table.holders
                kept.borrower = kept.borrower or left.borrower

    def _known_of(self, node: int, incarnation: int) -> dict[Name, Kept]:
        found: dict[Name, Kept] = {}
        for name, kept in self.tables.items():
            left = Kept(name)
            for (whose, number), holder in kept.table.holders.items():
                if whose == node:
                    holder.key = (-incarnation, number)
                    left.table.holders[holder.key] = holder
            if kept.borrower == node:
                left.borrower = -incarnation
            if left.table or left.borrower:
                found[name] = left
        return found

    def _unsure(self, root: bytes) -> bool:
        """Tell whether somebody who is leaving may hold what we do not know of."""
        me = self._here.me
        return any(
            members is None or directory_among(members, root) != me
            for members in self._witnessed.values()
        )

    def tell(self, sender: int, message: RangeTell) -> None:
        """Learn what a member holds, wants and has borrowed."""
        if message.epoch != self._here.epoch:
            return
        for root, leaf in ((name.root, name.leaf) for name in message.borrowed):
            kept = self._kept(Name(root, leaf))
            assert not kept.borrower, kept.name
            kept.borrower = sender
        for held in message.held:
            self._hold(sender, held)
        for wanted in message.wanted:
            self._kept(Name(wanted.root, wanted.leaf)).pending.append(self._asked(sender, wanted))
        if message.serials:
            self._acks.setdefault(sender, []).extend(message.serials)
        if message.last:
            self.missing.discard(sender)
            if not self.missing:
                self._begin()

    def _begin(self) -> None:
        """All have told: decide what waits."""
        for kept in list(self.tables.values()):
            kept.pending.sort(key=_age)
            self._work(kept)
        acks, self._acks = self._acks, {}
        for node, serials in acks.items():
            self._here.send(node, RangeFreed(self._here.epoch, tuple(serials)))

    def lose(self) -> None:
        """Forget all."""
        self.tables.clear()
        self._acks.clear()
        self._left.clear()
        self._witnessed.clear()
        self.missing.clear()

    # -- requests --------------------------------------------------------------------------------

    def ask(self, sender: int, message: RangeAsk) -> None:
        """Decide a request, now or later."""
        if message.epoch != self._here.epoch:
            return
        kept = self._kept(Name(message.wanted.root, message.wanted.leaf))
        if kept.borrower == sender:
            return  # it decides by itself, or has it in what it gives back
        kept.pending.append(self._asked(sender, message.wanted))
        if not self.missing:
            self._work(kept)

    def free(self, sender: int, message: RangeFree) -> None:
        """Let a holder have less."""
        here = self._here
        if message.epoch != here.epoch:
            return
        kept = self.tables.get(Name(message.root, message.leaf))
        if kept is not None and kept.borrower != sender:
            key = sender, message.holder
            holder = kept.table.holders.get(key)
            if holder is not None:
                holder.freed = message.freed
            kept.table.free(key, message.start, message.last, message.pending, message.left)
            if not self.missing:
                self._settle(kept)
        if self.missing:
            self._acks.setdefault(sender, []).append(message.serial)
        else:
            here.send(sender, RangeFreed(here.epoch, (message.serial,)))

    def cancel(self, sender: int, message: RangeCancel) -> None:
        """Let a request not wait any more, if it still does."""
        kept = self.tables.get(Name(message.root, message.leaf))
        if message.epoch != self._here.epoch or kept is None or kept.borrower == sender:
            return
        found = kept.table.withdraw(message.number, sender)
        if found is None:
            found = kept.withdraw_pending(message.number, sender)
        if found is None:
            return
        self._answer(found, Verdict.CANCELLED)
        if not self.missing:
            self._settle(kept)

    def returned(self, sender: int, message: RangeReturn) -> None:
        """Have a table back that was lent."""
        kept = self.tables.get(Name(message.root, message.leaf))
        if message.epoch != self._here.epoch or kept is None or kept.borrower != sender:
            return
        kept.borrower, kept.recalled = 0, False
        for held in message.held:
            self._hold(sender, held)
        kept.table.waiting = [self._asked(sender, wanted) for wanted in message.wanted]
        if not self.missing:
            self._work(kept)

    def _work(self, kept: Kept) -> None:
        """Decide what is pending, if that can be done here and now."""
        while kept.pending and not self._unsure(kept.name.root):
            if kept.borrower:
                self._recall(kept)
                return
            self._decide(kept, kept.pending.pop(0))
        self._drop(kept)

    def _recall(self, kept: Kept) -> None:
        here = self._here
        kept.contended = True
        if not kept.recalled and kept.borrower > 0:
            kept.recalled = True
            self.recalls += 1
            here.send(kept.borrower, RangeRecall(here.epoch, kept.name.root, kept.name.leaf))

    def _decide(self, kept: Kept, ask: Ask) -> None:
        here, node = self._here, ask.holder[0]
        kept.asked(node)
        if kept.may_lend(node):
            kept.table, kept.pending, kept.borrower = Table(remote=True), [], node
            kept.contended = kept.recalled = False
            self.lent += 1
            self._former.pop(kept.name, None)
            here.send(node, RangeLent(here.epoch, kept.name.root, kept.name.leaf))
            return
        verdict = kept.table.request(ask)
        if verdict is not None:
            self._answer(ask, verdict, kept.table)

    def _settle(self, kept: Kept) -> None:
        for ask in kept.table.settle():
            self._answer(ask, Verdict.GRANTED)
        self._drop(kept)

    def _answer(self, ask: Ask, verdict: Verdict, table: Table | None = None) -> None:
        here, conflict = self._here, None
        if verdict is Verdict.WOULD_BLOCK and table is not None:
            found = table.conflict(ask)
            assert found is not None
            conflict = held_by(found[0], found[1], Name(b""), self._node_of(found[0].key))
        here.send(ask.holder[0], RangeAnswer(here.epoch, ask.number, verdict, conflict))

    def _node_of(self, key: Key) -> int:
        node = key[0]
        leaving = {-incarnation: node for node, incarnation in self._here.leaving.items()}
        return node if node > 0 else leaving[node]

    # -- tables ----------------------------------------------------------------------------------

    def _kept(self, name: Name) -> Kept:
        kept = self.tables.get(name)
        if kept is None:
            kept = self.tables[name] = Kept(name)
            if name in self._former:
                kept.contended = True
                kept.asked_by, kept.row = self._former.pop(name)
        return kept

    def _drop(self, kept: Kept) -> None:
        """Forget a table in which there is nothing."""
        if kept.table or kept.pending or kept.borrower or self.tables.get(kept.name) is not kept:
            return
        del self.tables[kept.name]
        if kept.contended:
            self._former[kept.name] = kept.asked_by, kept.row
            if len(self._former) > _REMEMBERED:
                self._former.popitem(last=False)

    def _hold(self, node: int, held: Held) -> None:
        table = self._kept(Name(held.root, held.leaf)).table
        holder = table.hold((node, held.holder), held.who, held.pid, held.freed)
        holder.put(Span(held.start, held.last, held.mode))

    def _asked(self, node: int, wanted: Wanted) -> Ask:
        self._here.waits.heard(wanted.number)
        span = Span(wanted.start, wanted.last, wanted.mode)
        key = node, wanted.holder
        ask = Ask(key, wanted.number, span, wanted.how, who=wanted.who, pid=wanted.pid)
        ask.freed, ask.pending, ask.since_s = wanted.freed, wanted.pending, self._here.now_s
        return ask

    # -- the search for deadlocks ----------------------------------------------------------------

    def blockers(self, node: int, number: int) -> Iterator[tuple[int, Blocker]]:
        """Yield what keeps a request waiting, with the home of each."""
        found = self._waiting(node, number)
        if found is None:
            return
        kept, ask = found
        for holder, behind in once_each(kept.table, ask):
            if holder.key[0] > 0:
                yield holder.key[0], blocker(holder, holder.freed, behind)

    def hurry(self, node: int, number: int) -> None:
        """Let a request go before those it waits behind."""
        found = self._waiting(node, number)
        if found is not None:
            found[1].hurried = True
            self._settle(found[0])

    def _waiting(self, node: int, number: int) -> tuple[Kept, Ask] | None:
        for kept in self.tables.values():
            for ask in kept.table.waiting:
                if ask.number == number and ask.holder[0] == node:
                    return kept, ask
        return None

    def validate(self) -> None:
        """Assert the invariants; for tests, and only between two events."""
        for name, kept in self.tables.items():
            assert kept.name == name
            assert kept.borrower <= 0 or not kept.table, name
            if not self.missing:
                assert kept.table or kept.pending or kept.borrower, name
                kept.table.validate()


def _age(ask: Ask) -> tuple[int, int]:
    return ask.number, ask.holder[0]


def held_by(holder: Holder, segment: Segment, name: Name, node: int | None = None) -> Held:
    """Return a segment as messages have it."""
    start, last, mode = segment.span()
    return Held(*name, holder.key[1], start, last, mode, holder.pid, holder.who, holder.freed, node)


def once_each(table: Table, ask: Ask) -> Iterator[tuple[Holder, Ask | None]]:
    """Yield each holder that keeps a request waiting, once, directly if it does."""
    seen: set[Key] = set()
    for holder, behind in table.in_the_way(ask):
        if holder.key not in seen:
            seen.add(holder.key)
            yield holder, behind


def blocker(holder: Holder, freed: int, behind: Ask | None) -> Blocker:
    """Return what is in the way as messages of the search have it."""
    if behind is None:
        return Blocker(RANGE, holder.key[1], freed)
    words = f"{behind.mode.name} on {behind.start}..{behind.last} of {behind.who or 'somebody'}"
    place, home = behind.number, behind.holder[0]
    return Blocker(RANGE, holder.key[1], freed, place, words[:WORDS], home, behind.number)
