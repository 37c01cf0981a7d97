"""The table of one name's ranges: who holds which bytes, who waits for which, who goes next. PURE.

A holder has no two segments that overlap, and its own are never in its way: what it is granted
replaces what it had there (so a lock is strengthened, weakened, split and merged), what it frees is
cut out. Two holders may have the same byte only if both read (PR).

Whoever waits goes in the order of asking: before those that came later and want the same, unless
the later one holds what the earlier one waits for (a reader that wants to write is not to wait for
a writer that waits for that reader), or is told to hurry by the search for deadlocks. TRY asks only
what is held.

A grant that its holder has not heard of yet keeps its request's number: what that holder freed
meanwhile it did not mean. Numbers go once a later word of the holder shows that it knows.

In a table whose holders are told later what they are granted (`remote`), one that asks for less
than it has keeps what it has until it says that it has heard: till then it may rely on it.

Invariants (`validate`): each holder's segments are in order and apart, and not to be merged; two
holders' agree; nobody waits who could be granted.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dlm.modes import Mode
from dlm.range_messages import How, Verdict

Key = tuple[int, int]  # a holder: its node, and the number which that gave it


class Span(NamedTuple):
    """Some bytes, `last` included, and in what mode."""

    start: int
    last: int
    mode: Mode


class Segment:
    """What a holder has of the bytes from `start` to `last`."""

    __slots__ = ("last", "mode", "number", "start")

    def __init__(self, start: int, last: int, mode: Mode, number: int = 0) -> None:
        self.start = start
        self.last = last
        self.mode = mode
        self.number = number  # of the request that brought it, until its holder knows

    def __repr__(self) -> str:
        return f"{self.mode.name}[{self.start}..{self.last}]"

    def span(self) -> Span:
        """Return it as a value."""
        return Span(self.start, self.last, self.mode)


class Ask:
    """A request, as the table sees it."""

    __slots__ = (
        "freed",
        "holder",
        "how",
        "hurried",
        "last",
        "mode",
        "number",
        "pending",
        "pid",
        "since_s",
        "start",
        "who",
    )

    def __init__(
        self, holder: Key, number: int, span: Span, how: How, *, who: str = "", pid: int = 0
    ) -> None:
        self.holder = holder
        self.number = number
        self.start, self.last, self.mode = span
        self.how = how
        self.who = who
        self.pid = pid
        self.freed = 0
        self.pending: tuple[int, ...] = ()
        self.since_s = 0.0
        self.hurried = False

    def __repr__(self) -> str:
        return f"<Ask {self.number} of {self.holder} {self.mode.name}[{self.start}..{self.last}]>"

    def clashes(self, other: "Ask") -> bool:
        """Tell whether both cannot be had at the same time."""
        return (
            self.start <= other.last
            and other.start <= self.last
            and self.holder != other.holder
            and (self.mode is Mode.EX or other.mode is Mode.EX)
        )


class Holder:
    """Somebody who holds something."""

    __slots__ = ("freed", "key", "pid", "segments", "unseen", "who")

    def __init__(self, key: Key, who: str = "", pid: int = 0, freed: int = 0) -> None:
        self.key = key
        self.who = who
        self.pid = pid
        self.freed = freed  # how often it has freed something, as far as it is known here
        self.segments: list[Segment] = []
        self.unseen: dict[int, Span] = {}  # grants that it may not have heard of, by number

    def overlapping(self, start: int, last: int) -> slice:
        """Return where the segments that have some of these bytes are."""
        segments = self.segments
        first = bisect_left(segments, start, key=_last)
        return slice(first, bisect_right(segments, last, lo=first, key=_start))

    def conflict(self, start: int, last: int, mode: Mode) -> Segment | None:
        """Return the first segment that cannot be beside this of somebody else."""
        for segment in self.segments[self.overlapping(start, last)]:
            if mode is Mode.EX or segment.mode is Mode.EX:
                return segment
        return None

    def whole(self, segment: Segment) -> Segment:
        """Return a segment with its neighbours of the same mode, heard of or not."""
        place = self.segments.index(segment)
        first = last = place
        segments = self.segments
        while first and _adjoin(segments[first - 1], segments[first]):
            first -= 1
        while last + 1 < len(segments) and _adjoin(segments[last], segments[last + 1]):
            last += 1
        return Segment(segments[first].start, segments[last].last, segment.mode)

    def put(self, span: Span, number: int = 0) -> bool:
        """Have this from now on, whatever it was; tells whether that was stronger anywhere."""
        start, last, mode = span
        where = self.overlapping(start, last)
        weaker = any(found.mode > mode for found in self.segments[where])
        self._replace(where, start, last, [Segment(start, last, mode, number)])
        if number:
            self.unseen[number] = span
        self._merge(start, last)
        return weaker

    def add(self, span: Span, number: int) -> None:
        """Have this from now on, too, but nothing less than before."""
        start, last, mode = span
        stronger = [s for s in self._within(start, last) if s.mode > mode]
        self.put(span, number)
        for segment in stronger:
            where = self.overlapping(segment.start, segment.last)
            self._replace(where, segment.start, segment.last, [segment])
            self._merge(segment.start, segment.last)

    def cut(self, start: int, last: int, kept: Iterable[int] = (), left: Mode = Mode.NL) -> bool:
        """Have at most `left` there, but for what the requests in `kept` brought; True: it had."""
        found = self._within(start, last)
        if not any(segment.mode > left for segment in found):
            return False
        spared = [
            segment
            if segment.number and segment.number in kept
            else Segment(segment.start, segment.last, min(segment.mode, left))
            for segment in found
        ]
        spared = [segment for segment in spared if segment.mode > Mode.NL]
        self._replace(self.overlapping(start, last), start, last, spared)
        self._merge(start, last)
        return True

    def saw(self, pending: Iterable[int]) -> None:
        """Know that it has heard of all grants but, perhaps, those of these requests."""
        for number in [number for number in self.unseen if number not in pending]:
            start, last, _ = self.unseen.pop(number)
            for segment in self.segments[self.overlapping(start, last)]:
                if segment.number == number:
                    segment.number = 0
            self._merge(start, last)

    def _within(self, start: int, last: int) -> list[Segment]:
        return [
            Segment(max(start, s.start), min(last, s.last), s.mode, s.number)
            for s in self.segments[self.overlapping(start, last)]
        ]

    def _replace(self, where: slice, start: int, last: int, middle: list[Segment]) -> None:
        """Put `middle` where all that is from start to last was; what sticks out stays."""
        new = middle
        found = self.segments[where]
        if found and found[0].start < start:
            first = found[0]
            new = [Segment(first.start, start - 1, first.mode, first.number), *new]
        if found and found[-1].last > last:
            end = found[-1]
            new = [*new, Segment(last + 1, end.last, end.mode, end.number)]
        self.segments[where] = new

    def _merge(self, start: int, last: int) -> None:
        """Make one of neighbours that are alike, in and beside these bytes."""
        where = self.overlapping(max(0, start - 1), last + 1)
        merged: list[Segment] = []
        for segment in self.segments[where]:
            before = merged[-1] if merged else None
            if before is not None and _alike(before, segment):
                before.last = segment.last
            else:
                merged.append(segment)
        self.segments[where] = merged


def _adjoin(one: Segment, other: Segment) -> bool:
    return one.last + 1 == other.start and one.mode is other.mode


def _alike(one: Segment, other: Segment) -> bool:
    return _adjoin(one, other) and one.number == other.number


def _start(segment: Segment) -> int:
    return segment.start


def _last(segment: Segment) -> int:
    return segment.last


class Table:
    """The ranges of one name."""

    __slots__ = ("holders", "remote", "waiting")

    def __init__(self, *, remote: bool = False) -> None:
        self.remote = remote  # the holders hear later what they are granted
        self.holders: dict[Key, Holder] = {}
        self.waiting: list[Ask] = []

    def __bool__(self) -> bool:
        return bool(self.holders or self.waiting)

    # -- asking

    def request(self, ask: Ask) -> Verdict | None:
        """Decide a new request; None: it waits."""
        conflict = self.conflict(ask)
        if ask.how is How.TEST:
            return Verdict.FREE if conflict is None else Verdict.WOULD_BLOCK
        if conflict is None and (ask.how is How.TRY or not self._held_up(ask, self.waiting)):
            self._grant(ask)
            return Verdict.GRANTED
        if ask.how is How.TRY:
            return Verdict.WOULD_BLOCK
        self.waiting.append(ask)
        return None

    def conflict(self, ask: Ask) -> tuple[Holder, Segment] | None:
        """Return the lowest range that is in the way, all of it, and whose it is."""
        found: tuple[Holder, Segment] | None = None
        for key, holder in self.holders.items():
            if key == ask.holder:
                continue
            segment = holder.conflict(ask.start, ask.last, ask.mode)
            if segment is not None and (found is None or segment.start < found[1].start):
                found = holder, segment
        return found and (found[0], found[0].whole(found[1]))

    def settle(self) -> list[Ask]:
        """Grant what can be granted now, in turn; returns it."""
        granted: list[Ask] = []
        again = bool(self.waiting)
        while again:
            again = False
            ahead: list[Ask] = []
            for ask in self.waiting:
                if self._in_the_way(ask) or self._held_up(ask, ahead):
                    ahead.append(ask)
                else:
                    again |= self._grant(ask)
                    granted.append(ask)
            self.waiting = ahead
        return granted

    def withdraw(self, number: int, node: int) -> Ask | None:
        """Let a request not wait any more, if it does; others may have waited behind it."""
        for place, ask in enumerate(self.waiting):
            if ask.number == number and ask.holder[0] == node:
                return self.waiting.pop(place)
        return None

    def _in_the_way(self, ask: Ask) -> bool:
        for key, holder in self.holders.items():
            if key != ask.holder and holder.conflict(ask.start, ask.last, ask.mode) is not None:
                return True
        return False

    def _held_up(self, ask: Ask, ahead: Iterable[Ask]) -> bool:
        """Tell whether somebody goes before it."""
        return not ask.hurried and any(self._goes_before(other, ask) for other in ahead)

    def _goes_before(self, earlier: Ask, ask: Ask) -> bool:
        if not earlier.clashes(ask):
            return False
        own = self.holders.get(ask.holder)
        return own is None or own.conflict(earlier.start, earlier.last, earlier.mode) is None

    def _grant(self, ask: Ask) -> bool:
        """Let it have what it asks for; tells whether it had something stronger there."""
        holder = self.hold(ask.holder, ask.who, ask.pid, ask.freed)
        holder.saw(ask.pending)
        span = Span(ask.start, ask.last, ask.mode)
        if not self.remote:
            return holder.put(span, ask.number)
        holder.add(span, ask.number)
        return False

    # -- holding

    def hold(self, key: Key, who: str = "", pid: int = 0, freed: int = 0) -> Holder:
        """Return somebody who holds something, or will at once."""
        holder = self.holders.get(key)
        if holder is None:
            holder = self.holders[key] = Holder(key, who, pid, freed)
        return holder

    def free(
        self,
        key: Key,
        start: int,
        last: int,
        pending: Iterable[int] = (),
        left: Mode = Mode.NL,
    ) -> bool:
        """Let somebody hold at most `left` there; tells whether it held more. Then `settle`."""
        holder = self.holders.get(key)
        if holder is None:
            return False
        holder.saw(pending)
        freed = holder.cut(start, last, pending, left)
        if not holder.segments:
            del self.holders[key]
        return freed

    def nodes(self) -> set[int]:
        """Return whose holders hold or want anything."""
        return {node for node, _ in self.holders} | {ask.holder[0] for ask in self.waiting}

    # -- who waits for whom

    def in_the_way(self, ask: Ask) -> Iterator[tuple[Holder, Ask | None]]:
        """Yield who keeps it waiting; with the earlier request that is kept by that one, if so."""
        for key, holder in self.holders.items():
            if key != ask.holder and holder.conflict(ask.start, ask.last, ask.mode) is not None:
                yield holder, None
        if ask.hurried:
            return
        for earlier in self._before(ask):
            for holder in self.holders.values():
                if holder.key == earlier.holder:
                    continue
                if holder.conflict(earlier.start, earlier.last, earlier.mode) is not None:
                    yield holder, earlier

    def _before(self, ask: Ask) -> list[Ask]:
        """Return the requests that have to be granted first, directly or not."""
        chain = [ask]
        place = self.waiting.index(ask)
        for earlier in reversed(self.waiting[:place]):
            if any(self._goes_before(earlier, later) for later in chain if not later.hurried):
                chain.append(earlier)
        return chain[1:]

    def validate(self) -> None:
        """Assert the invariants; for tests, and only between two events."""
        for key, holder in self.holders.items():
            assert holder.key == key
            assert holder.segments, key
            for before, after in zip(holder.segments, holder.segments[1:], strict=False):
                assert before.last < after.start, holder.segments
                assert not _alike(before, after), holder.segments
            for segment in holder.segments:
                assert 0 <= segment.start <= segment.last, segment
                assert not segment.number or segment.number in holder.unseen
                for other in self.holders.values():
                    if other is not holder:
                        found = other.conflict(segment.start, segment.last, segment.mode)
                        assert found is None, (key, segment, other.key, found)
        ahead: list[Ask] = []
        for ask in self.waiting:
            assert ask.how is How.WAIT
            assert self._in_the_way(ask) or self._held_up(ask, ahead), (ask, self.holders)
            ahead.append(ask)
