"""Names that are new by construction: mastered at once, told later, and nothing shown before."""

import pytest

from dlm.core.claims import BATCH, GATHER_S
from dlm.core.lockspace import LockspaceCore
from dlm.core.mastery import KEEP_S
from dlm.core.situation import directory_among
from dlm.effects import Complete, Effect, Notify, Send
from dlm.errors import LockBusy
from dlm.events import Acquire, Change, Enter, Event, Lock, Name, Received, Release, Tick
from dlm.fields import TERM_BITS
from dlm.messages import (
    Claim,
    Claimed,
    Mastered,
    Message,
    Reign,
    Request,
    Route,
    Unlock,
)
from dlm.modes import Flags, Mode

NL, CR, CW, PR, PW, EX = Mode
VALBLK = int(Flags.VALBLK)


class Trio:
    """Three cores; what they say waits in `links` until it is carried."""

    def __init__(self) -> None:
        self.cores = {node: LockspaceCore(node, node) for node in (1, 2, 3)}
        self.links: dict[tuple[int, int], list[Message]] = {}
        self.now_s = 0.0
        self.notified: list[Lock] = []
        for node in self.cores:
            self.act(node, Enter(1, {1: 1, 2: 2, 3: 3}))
        self.settle()
        roots = [b"%d" % n for n in range(1000)]
        self.far = [root for root in roots if self.cores[1].here.directory_of(root) == 2]
        self.near = [root for root in roots if self.cores[1].here.directory_of(root) == 1]

    def act(self, node: int, event: Event) -> list[Effect]:
        effects = self.cores[node].handle(event, self.now_s)
        for effect in effects:
            if isinstance(effect, Send):
                self.links.setdefault((node, effect.node), []).append(effect.message)
            elif isinstance(effect, Notify):
                self.notified.append(effect.lock)
        self.cores[node].validate()
        return effects

    def carry(self, source: int, target: int) -> list[Message]:
        carried = self.links.pop((source, target), [])
        for message in carried:
            self.act(target, Received(source, message))
        return carried

    def settle(self) -> None:
        while self.links:
            self.carry(*next(iter(self.links)))

    def lock(self, node: int, root: bytes, mode: Mode, *, new: bool = False) -> Lock:
        lock = Lock(Name(root))
        self.act(node, Acquire(lock, mode, VALBLK, new))
        if not new:
            self.settle()
        return lock


@pytest.fixture
def three() -> Trio:
    return Trio()


def test_a_new_name_is_locked_without_a_message_whoever_its_directory_node_is(three: Trio) -> None:
    for root in (three.far[0], three.near[0]):
        assert three.lock(1, root, EX, new=True).mode is EX
    assert not three.links


def test_claims_of_many_names_are_one_message(three: Trio) -> None:
    for root in three.far[:5]:
        three.lock(1, root, EX, new=True)
    assert three.cores[1].deadline_s == GATHER_S
    three.now_s = GATHER_S
    three.act(1, Tick())
    assert three.carry(1, 2) == [
        Claim(
            1, tuple(Reign(root, (1 << TERM_BITS) + n) for n, root in enumerate(three.far[:5], 1))
        )
    ]
    assert three.carry(2, 1) == [Claimed(1, 5)]
    assert not three.cores[1].mastery.claims.pending
    assert three.cores[1].deadline_s == float("inf")


def test_many_claims_do_not_wait_for_the_deadline(three: Trio) -> None:
    for root in three.far[:BATCH]:
        three.lock(1, root, EX, new=True)
    assert [type(message) for message in three.links[1, 2]] == [Claim]


def test_a_new_name_found_by_another_node_has_one_master(three: Trio) -> None:
    parent, root = three.near[0], three.far[0]
    directory = three.lock(1, parent, EX)
    lock = three.lock(1, root, EX, new=True)
    three.act(3, Acquire(other := Lock(Name(parent)), PR))
    three.carry(3, 1)
    assert three.notified == [directory]
    three.act(1, Release(directory))
    assert [other.mode] == [None]  # not before node 2 knows the new name
    three.settle()
    assert [other.mode] == [PR]
    three.act(3, Acquire(found := Lock(Name(root)), EX))
    three.settle()
    assert [found.mode] == [None]
    three.act(1, Release(lock))
    three.settle()
    assert [found.mode] == [EX]


@pytest.mark.parametrize("held", [CW, PW, EX])
def test_whatever_let_us_write_waits_for_the_claims(three: Trio, held: Mode) -> None:
    three.lock(1, three.near[0], NL)  # which makes node 1 the master
    directory = three.lock(3, three.near[0], held)
    three.lock(3, three.far[0], PR, new=True)
    three.act(3, Release(directory))
    assert directory.mode is None
    assert [type(message) for message in three.links.get((3, 1), [])] == []
    three.settle()
    assert [copy.node for copy in three.cores[1].mastery.copies.values()] == [1]


@pytest.mark.parametrize("held", [NL, CR, PR])
def test_what_did_not_let_us_write_goes_at_once(three: Trio, held: Mode) -> None:
    three.lock(1, three.near[0], NL)  # which makes node 1 the master
    directory = three.lock(3, three.near[0], held)
    three.lock(3, three.far[0], PR, new=True)
    three.act(3, Release(directory))
    assert [type(message) for message in three.links[3, 1]] == [Unlock]


def test_later_claims_do_not_hold_back_what_waits_for_earlier_ones(three: Trio) -> None:
    three.lock(1, three.near[0], NL)
    directory = three.lock(3, three.near[0], EX)
    three.lock(3, three.far[0], PR, new=True)
    three.act(3, Release(directory))
    three.carry(3, 2)
    three.lock(3, three.far[1], PR, new=True)
    three.carry(2, 3)
    assert three.cores[3].mastery.claims.pending
    assert [type(message) for message in three.links[3, 1]] == [Unlock]


def test_weakened_twice_while_it_waits_it_is_weakened_once(three: Trio) -> None:
    parent = three.near[0]
    reader = three.lock(2, parent, NL)
    directory = three.lock(3, parent, EX)
    three.lock(3, three.far[0], PR, new=True)
    down = three.act(3, Change(directory, PR, VALBLK, b"written"))
    assert [type(effect) for effect in down if not isinstance(effect, Send)] == [Complete]
    assert directory.mode is PR
    with pytest.raises(LockBusy):
        three.act(3, Change(directory, EX))
    three.act(3, Release(directory, VALBLK, b"not this"))
    three.settle()
    three.act(2, Change(reader, PR, VALBLK))
    three.settle()
    assert (reader.lvb, reader.lvb_valid) == (b"written", True)


def test_a_conversion_that_the_master_may_begin_with_a_weakening_is_refused(three: Trio) -> None:
    directory = three.lock(3, three.near[0], CW)
    three.lock(3, three.far[0], PR, new=True)
    for mode, flags in ((PR, 0), (EX, int(Flags.CONVDEADLK))):
        with pytest.raises(LockBusy):
            three.act(3, Change(directory, mode, flags))
    three.now_s = GATHER_S
    three.act(3, Tick())
    three.settle()
    three.act(3, Change(directory, EX, int(Flags.CONVDEADLK)))
    three.settle()
    assert directory.mode is EX


def test_a_name_given_up_before_anybody_was_told_leaves_no_trace(three: Trio) -> None:
    lock = three.lock(1, three.far[0], PR, new=True)
    three.act(1, Release(lock))
    assert not three.links
    assert not three.cores[1].mastery.trees
    three.now_s = GATHER_S
    three.act(1, Tick())
    assert not three.links


def test_a_name_given_up_while_its_claim_is_on_its_way_is_removed(three: Trio) -> None:
    lock = three.lock(1, three.far[0], EX, new=True)
    three.now_s = GATHER_S
    three.act(1, Tick())
    three.act(1, Release(lock))
    three.settle()
    three.now_s += KEEP_S
    three.act(1, Tick())
    three.settle()
    assert not three.cores[1].mastery.trees
    assert not three.cores[2].directory.entries


def test_a_change_of_members_tells_the_directory_what_was_not_acknowledged(three: Trio) -> None:
    parent, root = three.near[0], three.far[0]
    directory = three.lock(1, parent, EX)
    three.lock(1, root, EX, new=True)
    three.act(3, Acquire(other := Lock(Name(parent)), PR))
    three.carry(3, 1)
    for node in (1, 2, 3):
        three.act(node, Enter(2, {1: 1, 2: 2, 3: 3}))
    three.act(1, Release(directory))  # the names made before are still not known
    assert not any(isinstance(message, Unlock) for message in three.links.get((1, 1), []))
    assert [other.mode] == [None]
    three.settle()
    assert [other.mode] == [PR]
    assert three.cores[2].directory.entries[root].master == (1, 1)


def test_the_death_of_the_maker_frees_what_nobody_else_has_heard_of(three: Trio) -> None:
    three.lock(1, three.far[0], EX, new=True)
    three.links.clear()
    del three.cores[1]
    for node in (2, 3):
        three.act(node, Enter(2, {2: 2, 3: 3}))
    three.settle()
    assert three.lock(3, three.far[0], EX).mode is EX


def test_names_are_made_up_while_a_recovery_is_running(three: Trio) -> None:
    for node in (1, 2, 3):
        three.act(node, Enter(2, {1: 1, 2: 2, 3: 3}))
    lock = three.lock(1, three.far[0], EX, new=True)
    assert lock.mode is EX


def test_a_name_that_leaked_has_one_master_all_the_same(three: Trio) -> None:
    root = three.far[0]
    for core in three.cores.values():
        core.here.maker_of = lambda _root: 1
    lock = three.lock(1, root, EX, new=True)
    three.act(3, Acquire(early := Lock(Name(root)), EX))
    three.settle()
    assert [early.mode] == [None]  # node 2, who had not heard of it, asked node 1
    three.act(1, Release(lock))
    three.settle()
    assert [early.mode] == [EX]


def test_what_its_maker_does_not_master_belongs_to_who_asks(three: Trio) -> None:
    for core in three.cores.values():
        core.here.maker_of = lambda _root: 1
    three.act(3, Acquire(lock := Lock(Name(three.far[0])), EX))
    assert [m.route for m in three.carry(3, 2) if isinstance(m, Request)] == [Route.ASK]
    assert [m.route for m in three.carry(2, 1) if isinstance(m, Request)] == [Route.MAKER]
    assert [m.route for m in three.carry(1, 2) if isinstance(m, Request)] == [Route.UNMADE]
    three.settle()
    assert lock.mode is EX
    assert three.cores[2].directory.entries[three.far[0]].master == (3, 3)


def test_a_maker_that_is_leaving_may_still_hold_what_it_made(three: Trio) -> None:
    root = next(root for root in three.far if directory_among((2, 3), root) == 2)
    for core in three.cores.values():
        core.here.maker_of = lambda _root: 1
    three.lock(1, root, EX, new=True)
    three.links.clear()
    for node in (2, 3):
        three.act(node, Enter(2, {2: 2, 3: 3}, {1: 1}))
    three.settle()
    three.act(3, Acquire(early := Lock(Name(root)), EX))
    three.settle()
    assert [early.mode] == [None]
    del three.cores[1]
    for node in (2, 3):
        three.act(node, Enter(3, {2: 2, 3: 3}))
    three.settle()
    assert [early.mode] == [EX]


@pytest.mark.parametrize("maker", [2, 3, 9, None])
def test_a_maker_that_asks_or_knows_or_is_gone_is_not_asked(three: Trio, maker: int | None) -> None:
    for core in three.cores.values():
        core.here.maker_of = lambda _root: maker
    three.act(3, Acquire(Lock(Name(three.far[0])), EX))
    three.carry(3, 2)
    assert [type(message) for message in three.carry(2, 3)] == [Mastered]
