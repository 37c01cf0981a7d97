"""The search for deadlocks: probes that follow who waits for whom, from node to node. PURE.

Edge chasing for the AND model (Chandy, Misra and Haas 1983) with the path in the probe. An owner
waits for things (a lock, say) that are queued somewhere; the queue's node knows what is in the
way; the home of each such thing knows which owners use it and what those wait for. Each wait that
lasts is searched from, again and again, so a probe may always be dropped: by a recovery, by a node
that is not up to date, by one that has seen the same search come to the same wait before.

*One victim a cycle*: waits are ranked, and a search goes only through waits of owners that outrank
its own. So a cycle is found only from its lowest wait, at whose home the search closes, and that is
the victim. *No phantom*: a second round confirms that each wait and each use on the cycle is still
the one that the first round saw. What lasted from its visit in the first round to its visit in the
second existed in the moment between the rounds, all of it at once.

What goes first in a queue is not followed as a wait of its own: whoever holds what that one waits
for is in the way of all behind it, and the queue's node says so at once.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from msgspec.structs import replace

from dlm.core.situation import NEVER, Situation
from dlm.core.waits import SEARCH_EVERY_S
from dlm.events import Key, Owner, Wait
from dlm.messages import Blocker, Chase, Confirm, Hop, Probe

LONGEST: Final = 64  # waits on a path; a longer cycle is not found
STORIES: Final = 10
SEEN_S: Final = 5.0  # how long a search is remembered


class Source(Protocol):
    """One kind of thing that is waited for. Numbers are the homes', nodes are where homes are."""

    def host(self, number: int) -> int | None:
        """At home: return the node that queues the wait for this thing; None: not queued yet."""

    def blockers(self, node: int, number: int) -> Iterable[tuple[int, Blocker]]:
        """At the queue: return what is in the way of this wait, each with its home.

        That includes whatever keeps those waiting that go before this wait.
        """

    def waits(self, number: int, place: int) -> bool:
        """At home: tell whether it still waits, for good, at that place of its queue."""

    def holders(self, number: int, state: int) -> Iterable[tuple[Owner, int]]:
        """At home: return who uses the thing and a stamp that changes with what is held.

        Nobody, unless `state` is what is held.
        """

    def wants(self, number: int) -> str:
        """At home: say what is waited for."""

    def holds(self, number: int) -> str:
        """At home: say what is held."""

    def give_up(self, number: int, story: str) -> None:
        """At home: let the wait fail."""

    def overtake(self, node: int, number: int) -> bool:
        """Let a wait go before those it waits behind; False: things of this kind keep order."""


class _Rank(NamedTuple):
    """Who gives way: the highest, so low priority first, then youth, then the node."""

    meekness: int
    owner: int
    node: int
    key: Key


class Detector:
    """One node's part in every search."""

    def __init__(self, here: Situation, sources: Mapping[int, Source]) -> None:
        self._here = here
        self._sources = dict(sources)
        self._seen: dict[tuple[int, int], tuple[float, set[Key]]] = {}  # by home and search
        self.searches = 0
        self.victims = 0  # waits of this node that gave way
        self.stories: deque[str] = deque(maxlen=STORIES)  # of the last victims
        # A second round begins from this wait.
        self.on_close: Callable[[Wait, tuple[Hop, ...]], None] | None = None
        self.on_victim: Callable[[Wait, tuple[Hop, ...]], None] | None = None

    def register(self, kind: int, source: Source) -> None:
        """Search also through things of another kind."""
        assert kind not in self._sources
        self._sources[kind] = source

    def tick(self) -> None:
        """Start the searches that are due."""
        here = self._here
        if here.frozen:
            return
        for wait in tuple(here.waits.by_key.values()):
            if wait.search_s <= here.now_s:
                wait.search_s = here.now_s + SEARCH_EVERY_S
                self.searches += 1
                self._ask(self.searches, (), wait)
        waits = here.waits
        waits.due_s = min((wait.search_s for wait in waits.by_key.values()), default=NEVER)

    # -- first round -----------------------------------------------------------------------------

    def probe(self, _sender: int, message: Probe) -> None:
        """As the queue's node: pass the search on to the homes of what is in the way."""
        here, last = self._here, message.path[-1]
        if message.epoch != here.epoch:
            return  # a node on the path may be another start of itself by now
        homes: dict[int, list[Blocker]] = {}
        for node, blocker in self._blockers(last):
            homes.setdefault(node, []).append(blocker)
        for node, blockers in homes.items():
            here.send(node, Chase(here.epoch, message.search, message.path, tuple(blockers)))

    def chase(self, _sender: int, message: Chase) -> None:
        """As home of what is in the way: pass the search on through what its users wait for."""
        first = message.path[0]
        if message.epoch != self._here.epoch:
            return
        self._here.waits.heard(max(hop.owner for hop in message.path))
        for blocker in message.blockers:
            for owner, stamp in self._holders(blocker):
                if (first.node, first.owner) == (self._here.me, owner.number):
                    self._close(message, blocker, stamp)
                    continue
                for wait in owner.waits.values():
                    if self._goes_on(message, wait):
                        hop = self._hop(wait, blocker, stamp)
                        self._ask(message.search, message.path, wait, hop)

    def _ask(self, search: int, path: tuple[Hop, ...], wait: Wait, hop: Hop | None = None) -> None:
        here, (kind, number) = self._here, wait.key
        host = self._sources[kind].host(number)
        if host in here.members:
            path = (*path, hop or self._hop(wait))
            here.send(host, Probe(here.epoch, search, path))

    def _hop(self, wait: Wait, blocker: Blocker | None = None, stamp: int = 0) -> Hop:
        kind, number = wait.key
        owner = wait.owner
        who = f"{owner.label or 'owner'} on node {self._here.me}"
        return Hop(
            self._here.me,
            owner.priority,
            owner.number,
            kind,
            number,
            wait.stamp,
            who,
            self._sources[kind].wants(number),
            blocker,
            stamp,
            self._held(blocker),
        )

    def _held(self, blocker: Blocker | None) -> str:
        return "" if blocker is None else self._sources[blocker.kind].holds(blocker.number)

    def _blockers(self, hop: Hop) -> Iterable[tuple[int, Blocker]]:
        return self._sources[hop.kind].blockers(hop.node, hop.number)

    def _holders(self, blocker: Blocker) -> Iterable[tuple[Owner, int]]:
        return self._sources[blocker.kind].holders(blocker.number, blocker.state)

    def _goes_on(self, message: Chase, wait: Wait) -> bool:
        """Tell whether a search has not been at this wait yet, and has anything to find there."""
        here, first = self._here, message.path[0]
        if _rank_here(here.me, wait) > _rank(first) or len(message.path) >= LONGEST:
            return False
        search = first.node, message.search
        while self._seen:  # forget old searches
            oldest = next(iter(self._seen))
            if self._seen[oldest][0] + SEEN_S > here.now_s:
                break
            del self._seen[oldest]
        _, seen = self._seen.setdefault(search, (here.now_s, set()))
        if wait.key in seen:
            return False
        seen.add(wait.key)
        return True

    # -- second round ----------------------------------------------------------------------------

    def _close(self, message: Chase, blocker: Blocker, stamp: int) -> None:
        """Begin the second round, in the search's home, with what has closed the cycle."""
        first = message.path[0]
        held = self._held(blocker)
        closed = replace(first, blocker=blocker, blocker_stamp=stamp, holds=held)
        cycle = (closed, *message.path[1:])
        wait = self._here.waits.by_key.get((first.kind, first.number))
        if wait is not None and self.on_close is not None:
            self.on_close(wait, cycle)
        self._confirm_at_home(cycle, 0)

    def confirm(self, _sender: int, message: Confirm) -> None:
        """Check one hop of a cycle that a search has found."""
        cycle, at = message.cycle, message.at
        if message.epoch != self._here.epoch:
            return
        if message.behind:
            self._confirm_before(cycle, at, message.held)
        elif not message.home:
            self._confirm_in_queue(cycle, at)
        elif at:
            self._confirm_at_home(cycle, at)
        elif self._still(cycle[0]):
            self._give_up(cycle)

    def _confirm_at_home(self, cycle: tuple[Hop, ...], at: int) -> None:
        here, hop = self._here, cycle[at]
        host = self._sources[hop.kind].host(hop.number)
        if host in here.members and self._still(hop):
            here.send(host, Confirm(here.epoch, cycle, at, home=False))

    def _confirm_in_queue(self, cycle: tuple[Hop, ...], at: int) -> None:
        here, following = self._here, (at + 1) % len(cycle)
        home, known = cycle[following].node, cycle[following].blocker
        assert known is not None
        found = list(self._blockers(cycle[at]))
        if (home, known) not in found:
            return
        if known.place:
            held = _held_by((known.behind_node, known.behind_number), found)
            before = Confirm(here.epoch, cycle, at, home=False, behind=True, held=held)
            here.send(known.behind_node, before)
        else:
            here.send(home, Confirm(here.epoch, cycle, following, home=True))

    def _confirm_before(self, cycle: tuple[Hop, ...], at: int, held: int | None) -> None:
        """Check the wait that keeps hop `at` behind it: its end may not be known in the queue."""
        here, following = self._here, (at + 1) % len(cycle)
        known = cycle[following].blocker
        assert known is not None
        if not self._sources[known.kind].waits(known.behind_number, known.place):
            return
        if held is None or not self._gives_way_itself(known, held, cycle[0]):
            here.send(cycle[following].node, Confirm(here.epoch, cycle, following, home=True))

    def _gives_way_itself(self, known: Blocker, held: int, first: Hop) -> bool:
        """Tell whether the wait that goes first is on the same cycle, and to be its victim.

        It is if what it holds is in the way, too, and it ranks below the one that has found the
        cycle. Then it finds that by its own search.
        """
        wait = self._here.waits.by_key.get((known.kind, known.behind_number))
        if wait is None or _rank_here(self._here.me, wait) < _rank(first):
            return False
        holders = self._sources[known.kind].holders(known.behind_number, held)
        return any(owner is wait.owner for owner, _ in holders)

    def _still(self, hop: Hop) -> bool:
        """Tell whether a hop's wait, and its part in the wait before it, are the same as then."""
        wait = self._here.waits.by_key.get((hop.kind, hop.number))
        if wait is None or wait.stamp != hop.stamp:
            return False
        assert hop.blocker is not None
        holders = self._holders(hop.blocker)
        return any(owner is wait.owner and stamp == hop.blocker_stamp for owner, stamp in holders)

    def _give_up(self, cycle: tuple[Hop, ...]) -> None:
        """End the cycle: best by giving up only an order of waiting, else at its victim's cost."""
        for waiter, hop in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
            assert hop.blocker is not None
            if hop.blocker.behind and self._sources[waiter.kind].overtake(
                waiter.node, waiter.number
            ):
                return
        victim = cycle[0]
        self.victims += 1
        if self.on_victim is not None:
            self.on_victim(self._here.waits.by_key[victim.kind, victim.number], cycle)
        self._here.waits.end(victim.kind, victim.number)
        self.stories.append(tell(cycle))
        self._sources[victim.kind].give_up(victim.number, self.stories[-1])


def _held_by(thing: tuple[int, int], found: Iterable[tuple[int, Blocker]]) -> int | None:
    """Return what is held of a thing that is in the way by itself; None: it is not."""
    for node, blocker in found:
        if (node, blocker.number) == thing and not blocker.place:
            return blocker.state
    return None


def _rank_here(me: int, wait: Wait) -> _Rank:
    return _Rank(-wait.owner.priority, wait.owner.number, me, wait.key)


def _rank(hop: Hop) -> _Rank:
    return _Rank(-hop.priority, hop.owner, hop.node, (hop.kind, hop.number))


def tell(cycle: tuple[Hop, ...]) -> str:
    """Return a cycle in words: it begins and ends with the victim."""
    parts = [f"{cycle[0].who} waits for {cycle[0].wants}"]
    for hop in (*cycle[1:], cycle[0]):
        assert hop.blocker is not None
        behind = f" behind {hop.blocker.behind}" if hop.blocker.behind else ""
        parts[-1] += behind
        parts.append(f"{hop.who} holds {hop.holds} and waits for {hop.wants}")
    parts[-1] = f"{cycle[0].who} holds {cycle[0].holds}"
    return "; ".join(parts)
