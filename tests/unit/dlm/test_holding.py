"""The minimum hold time: who comes back at once keeps a lock a while; nobody else does."""

from collections.abc import Iterator

import pytest

from dlm.core.holding import MOST_ROUNDS, MOST_S, Holding
from dlm.core.lockspace import LockspaceCore
from dlm.core.situation import NEVER, Situation
from dlm.effects import Notify, Send
from dlm.events import Acquire, Enter, Event, Lock, Name, Received, Release, Tick
from dlm.messages import Message
from dlm.modes import Mode

NAME = Name(b"contended")
ONE_WAY_S = 0.001
NL, EX = Mode.NL, Mode.EX


class Pair:
    """Nodes 2 and 3 contend for a lock that node 1 masters; each hop takes ONE_WAY_S."""

    def __init__(self) -> None:
        self.cores = {node: LockspaceCore(node, node) for node in (1, 2, 3)}
        self.links: list[tuple[float, int, int, Message]] = []
        self.now_s = 1.0
        self.told: list[tuple[float, Lock]] = []
        for node in self.cores:
            self.act(node, Enter(1, {1: 1, 2: 2, 3: 3}))
        self.run(0.1)
        self.act(1, Acquire(Lock(NAME), NL))
        self.run(0.1)

    def act(self, node: int, event: Event) -> None:
        for effect in self.cores[node].handle(event, self.now_s):
            if isinstance(effect, Send):
                self.links.append((self.now_s + ONE_WAY_S, node, effect.node, effect.message))
            elif isinstance(effect, Notify):
                self.told.append((self.now_s, effect.lock))
        self.cores[node].validate()

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while (at_s := self.next_s()) <= end_s:
            self.now_s = max(self.now_s, at_s)
            if self.links and self.links[0][0] <= at_s:
                _, source, target, message = self.links.pop(0)
                self.act(target, Received(source, message))
            else:
                for node, core in self.cores.items():
                    if core.deadline_s <= self.now_s:
                        self.act(node, Tick())
        self.now_s = end_s

    def next_s(self) -> float:
        deadlines = [core.deadline_s for core in self.cores.values()]
        return min([*deadlines, *(at_s for at_s, *_ in self.links[:1])])

    def ask(self, node: int) -> Lock:
        self.act(node, Acquire(lock := Lock(NAME), EX))
        return lock

    def pass_on(self, gap_s: float) -> Iterator[float]:
        """Let the nodes take turns; each asks again `gap_s` after it was told to make way.

        Yields how long each kept the lock.
        """
        held, waiting = (2, self.ask(2)), (3, self.ask(3))
        while True:
            self.run(0.5)
            at_s, lock = self.told.pop(0)
            assert lock is held[1]
            yield round(at_s - lock.granted_s, 6)
            self.now_s = at_s
            self.act(held[0], Release(lock))
            self.run(gap_s)
            held, waiting = waiting, (held[0], self.ask(held[0]))


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_lock_that_is_wanted_for_the_first_time_is_passed_on_at_once(pair: Pair) -> None:
    lock = pair.ask(2)
    pair.run(0.1)
    pair.ask(3)
    began_s = pair.now_s
    pair.run(0.1)
    [(told_s, who)] = pair.told
    assert who is lock
    assert told_s == pytest.approx(began_s + 2 * ONE_WAY_S)


def test_who_is_back_at_once_keeps_it_longer_each_time_up_to_a_limit(pair: Pair) -> None:
    turns = pair.pass_on(gap_s=0.0)
    kept = [next(turns) for _ in range(40)]
    longest_s = min(MOST_S, MOST_ROUNDS * 2 * ONE_WAY_S)
    assert max(kept[:4]) <= 4 * ONE_WAY_S
    assert kept[4:] == sorted(kept[4:])
    assert longest_s * 0.8 <= kept[-1] <= longest_s * 1.2


def test_who_takes_its_time_to_come_back_does_not_keep_others_waiting(pair: Pair) -> None:
    turns = pair.pass_on(gap_s=5 * ONE_WAY_S)
    for _ in range(20):
        next(turns)
    assert not any(core.ownership.holding.postponed for core in pair.cores.values())


def test_only_round_trips_to_other_nodes_count(pair: Pair) -> None:
    holding = pair.cores[1].ownership.holding
    before_s = holding.round_trip_s
    pair.act(1, Acquire(Lock(NAME), Mode.CR))
    assert holding.round_trip_s == before_s
    pair.ask(2)
    pair.run(0.1)
    assert 2 * ONE_WAY_S <= pair.cores[2].ownership.holding.round_trip_s * 1.001 <= 3 * ONE_WAY_S


class Bench:
    """Holding by itself, for a lock whose user is back at once every time."""

    def __init__(self) -> None:
        self.here = Situation(1, 1)
        self.told: list[Mode] = []
        self.holding = Holding(self.here, lambda _lock, mode: self.told.append(mode))
        for _ in range(2):
            self.lock = self.take()
            self.lock.blocked_for = EX
            self.holding.made_way(self.lock)
        self.lock = self.take()

    def take(self) -> Lock:
        lock = Lock(NAME)
        lock.id = 7
        self.here.now_s += 0.0005
        self.holding.asked(lock)
        self.here.now_s += 0.002
        self.holding.answered(lock, 2)
        lock.mode = EX
        self.holding.granted(lock, 2)
        return lock

    def wait(self, seconds: float) -> None:
        self.here.now_s += seconds
        self.here.deadline_s = NEVER
        self.holding.tick()


def test_the_strongest_of_what_waits_is_told_once() -> None:
    bench = Bench()
    for mode in (Mode.PR, EX, Mode.CR):
        bench.holding.told(bench.lock, mode)
    bench.holding.validate()
    assert bench.told == []
    bench.wait(MOST_S)
    assert bench.told == [EX]
    bench.wait(MOST_S)
    assert bench.told == [EX]


def test_what_waits_is_forgotten_when_the_lock_makes_way_by_itself() -> None:
    bench = Bench()
    bench.holding.told(bench.lock, EX)
    bench.holding.made_way(bench.lock)
    bench.wait(MOST_S)
    assert bench.told == []


def test_what_waits_is_forgotten_with_the_next_grant() -> None:
    """The master tells every holder anew after a grant."""
    bench = Bench()
    bench.holding.told(bench.lock, EX)
    bench.holding.granted(bench.lock, 2)
    bench.wait(MOST_S)
    assert bench.told == []
