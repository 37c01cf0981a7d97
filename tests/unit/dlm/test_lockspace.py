import pytest

from dlm.core.lockspace import LockspaceCore
from dlm.core.mastery import KEEP_S
from dlm.core.recovery import PAGE
from dlm.effects import Complete, Effect, Send
from dlm.errors import LockBusy, LockLost
from dlm.events import Acquire, Change, Enter, Lock, Lose, Name, Received, Release, Tick, Withdraw
from dlm.messages import Locks, Message, Reigns, Removed, Request, Route, Seats, Status
from dlm.modes import Flags, Mode

NL, CR, CW, PR, PW, EX = Mode


class Wire:
    """Cores and the messages between them."""

    def __init__(self, *nodes: int) -> None:
        self.cores = {node: LockspaceCore(node, node) for node in nodes}
        self.links: dict[tuple[int, int], list[Message]] = {}
        self.completed: list[tuple[Lock, Status]] = []
        self.now_s = 0.0

    def act(self, node: int, event: object) -> list[Effect]:
        effects = self.cores[node].handle(event, self.now_s)  # type: ignore[arg-type]
        for effect in effects:
            if isinstance(effect, Send):
                self.links.setdefault((node, effect.node), []).append(effect.message)
            elif isinstance(effect, Complete):
                self.completed.append((effect.lock, effect.status))
        return effects

    def enter(self, epoch: int, *nodes: int) -> None:
        members = {node: self.cores[node].here.incarnation for node in sorted(self.cores)}
        for node in nodes or tuple(members):
            self.act(node, Enter(epoch, members, {}, epoch - 1))

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        for node in self.cores:
            self.act(node, Tick())

    def settle(self) -> None:
        while any(self.links.values()):
            for (source, target), link in tuple(self.links.items()):
                if link and target in self.cores:
                    self.act(target, Received(source, link.pop(0)))
                else:
                    link.clear()
        for core in self.cores.values():
            core.validate()
            assert not core.here.misdirected

    def lock(self, node: int, name: Name, mode: Mode, flags: Flags = Flags.VALBLK) -> Lock:
        lock = Lock(name)
        self.act(node, Acquire(lock, mode, int(flags)))
        self.settle()
        return lock


@pytest.fixture
def wire() -> Wire:
    wire = Wire(1, 2, 3)
    wire.enter(1)
    wire.settle()
    return wire


def root_with_directory(wire: Wire, node: int) -> bytes:
    roots = (b"%d" % n for n in range(1000))
    return next(root for root in roots if wire.cores[1].here.directory_of(root) == node)


def test_three_messages_when_requester_directory_and_master_differ(wire: Wire) -> None:
    root = root_with_directory(wire, 2)
    wire.lock(1, Name(root), NL)
    sent = []
    wire.act(3, Acquire(lock := Lock(Name(root)), PR))
    while any(wire.links.values()):
        for (source, target), link in tuple(wire.links.items()):
            while link:
                sent.append((source, target))
                wire.act(target, Received(source, link.pop(0)))
    assert sent == [(3, 2), (2, 1), (1, 3)]
    assert lock.mode is PR


def test_nothing_is_sent_for_what_we_master(wire: Wire) -> None:
    root = root_with_directory(wire, 1)
    effects = wire.act(1, Acquire(Lock(Name(root)), EX))
    assert [type(effect) for effect in effects] == [Complete]


def test_a_forgotten_root_leaves_no_trace(wire: Wire) -> None:
    for directory in (1, 2, 3):
        root = root_with_directory(wire, directory)
        first, second = wire.lock(1, Name(root), PR), wire.lock(3, Name(root), PR)
        wire.act(1, Release(first))
        wire.settle()
        assert 1 in {n for n, core in wire.cores.items() if root in core.mastery.trees}
        wire.act(3, Release(second))
        wire.settle()
        wire.wait(KEEP_S)
        wire.settle()
        for core in wire.cores.values():
            assert root not in core.mastery.trees
            assert root not in core.directory.entries
            assert root not in core.ownership.roots


def test_a_request_that_crosses_the_removal_of_its_root_is_served(wire: Wire) -> None:
    root = root_with_directory(wire, 2)
    lock = wire.lock(1, Name(root), EX)
    wire.act(2, Acquire(other := Lock(Name(root)), EX))  # the directory node forwards its own
    wire.act(1, Release(lock))
    wire.wait(KEEP_S)
    wire.settle()
    assert other.mode is EX


def test_a_new_request_of_a_master_that_is_giving_its_root_up_waits_for_the_directory(
    wire: Wire,
) -> None:
    root = root_with_directory(wire, 2)
    lock = wire.lock(1, Name(root), EX)
    wire.act(1, Release(lock))
    wire.wait(KEEP_S)
    wire.act(1, Acquire(again := Lock(Name(root)), EX))
    assert again.mode is None
    assert [type(message) for message in wire.links[1, 2]][-1] is Request
    wire.settle()
    assert again.mode is EX


def test_an_empty_tree_is_kept_until_the_directory_node_agrees(wire: Wire) -> None:
    root = root_with_directory(wire, 2)
    lock = wire.lock(1, Name(root), EX)
    wire.act(1, Release(lock))
    wire.wait(KEEP_S)
    assert root in wire.cores[1].mastery.trees
    (ask,) = wire.links.pop((1, 2))
    wire.act(2, Received(1, ask))
    assert [type(message) for message in wire.links[2, 1]] == [Removed]
    wire.settle()
    assert root not in wire.cores[1].mastery.trees


def carried(wire: Wire) -> list[tuple[int, int]]:
    """Let all messages arrive; return from whom to whom they went."""
    went = []
    while any(wire.links.values()):
        for (source, target), link in tuple(wire.links.items()):
            while link:
                went.append((source, target))
                wire.act(target, Received(source, link.pop(0)))
    return went


def test_a_tree_without_locks_is_locked_again_for_nothing_for_a_while(wire: Wire) -> None:
    root = root_with_directory(wire, 2)
    lock = wire.lock(1, Name(root), EX)
    wire.act(1, Release(lock))
    wire.wait(KEEP_S / 2)
    assert wire.lock(1, Name(root), EX).mode is EX
    assert carried(wire) == []
    wire.wait(KEEP_S)
    assert carried(wire) == []  # it is in use


def test_a_remembered_master_is_asked_first(wire: Wire) -> None:
    root = root_with_directory(wire, 2)
    wire.lock(1, Name(root), NL)
    wire.act(3, Release(wire.lock(3, Name(root), PR)))
    wire.settle()
    wire.act(3, Acquire(Lock(Name(root)), PR))
    assert carried(wire) == [(3, 1), (1, 3)]


def test_a_wrong_guess_costs_one_message_and_no_wrong_grant(wire: Wire) -> None:
    root = root_with_directory(wire, 2)
    first = wire.lock(1, Name(root), NL)
    wire.act(3, Release(wire.lock(3, Name(root), PR)))
    wire.act(1, Release(first))
    wire.settle()
    wire.wait(KEEP_S)
    wire.settle()  # node 1 has given the root up, and node 3 has not heard of it
    holder = wire.lock(2, Name(root), EX)
    wire.act(3, Acquire(lock := Lock(Name(root)), PR))
    assert carried(wire) == [(3, 1), (1, 2), (2, 3)]  # node 2 is directory node and master
    assert lock.mode is None
    wire.act(2, Release(holder))
    wire.settle()
    assert lock.mode is PR


def test_a_wrong_guess_may_end_at_home(wire: Wire) -> None:
    """Asked through a wrong guess, the directory node makes the requester the master."""
    root = root_with_directory(wire, 2)
    first = wire.lock(1, Name(root), NL)
    wire.act(3, Release(wire.lock(3, Name(root), PR)))
    wire.act(1, Release(first))
    wire.settle()
    wire.wait(KEEP_S)
    wire.settle()
    assert wire.lock(3, Name(root), EX).mode is EX
    assert root in wire.cores[3].mastery.trees


def test_one_operation_at_a_time(wire: Wire) -> None:
    name = Name(root_with_directory(wire, 2))
    wire.lock(1, name, PR)
    lock = wire.lock(3, name, PR)
    wire.act(3, Change(lock, EX))
    for event in (Change(lock, NL), Release(lock)):
        with pytest.raises(LockBusy):
            wire.act(3, event)
    wire.act(3, Withdraw(lock))
    wire.act(3, Withdraw(lock))
    wire.settle()
    assert wire.completed[-1] == (lock, Status.CANCELLED)
    assert lock.mode is PR


def test_between_pr_and_cw_only_the_common_part_is_held(wire: Wire) -> None:
    name = Name(root_with_directory(wire, 2))
    blocker = wire.lock(1, name, PR)
    lock = wire.lock(3, name, PR)
    wire.act(3, Change(lock, CW))
    wire.settle()
    assert (lock.mode, lock.granted) == (CR, PR)
    wire.act(1, Release(blocker))
    wire.settle()
    assert lock.mode is CW


def test_a_value_written_by_an_unlock_in_flight_survives_a_view_change(wire: Wire) -> None:
    name = Name(root_with_directory(wire, 2))
    anchor = wire.lock(1, name, NL)
    writer = wire.lock(3, name, EX)
    wire.act(3, Release(writer, int(Flags.VALBLK), b"precious"))
    wire.enter(2, 1)  # the master is in the new epoch before the old word arrives
    wire.enter(2, 2, 3)
    wire.settle()
    reader = wire.lock(2, name, PR)
    assert (reader.lvb, reader.lvb_valid, anchor.mode) == (b"precious", True, NL)


def test_what_happens_to_a_tree_without_a_master_counts_at_once_and_arrives_later(
    wire: Wire,
) -> None:
    name = Name(root_with_directory(wire, 2))
    wire.lock(1, name, NL)
    writer = wire.lock(3, name, EX)
    wire.act(2, Acquire(waiter := Lock(name), PR, int(Flags.VALBLK)))
    wire.settle()
    del wire.cores[1]
    wire.links.clear()
    wire.enter(2)  # node 3 has told what it holds, and nobody has heard it yet
    wire.act(3, Change(writer, NL, int(Flags.VALBLK), b"frozen!!"))
    assert writer.mode is NL
    assert waiter.mode is None
    wire.settle()
    assert wire.completed[-1] == (waiter, Status.GRANTED)
    assert (waiter.lvb, waiter.lvb_valid) == (b"frozen!!", True)


def test_a_view_change_stops_nothing_that_it_does_not_concern(wire: Wire) -> None:
    """The master is cut off from all pages of the recovery, and grants all the same."""
    for directory in (1, 2):
        name = Name(root_with_directory(wire, directory))
        wire.lock(1, name, NL)
        del wire.cores[3]
        wire.enter(2)
        wire.links.clear()
        wire.act(2, Acquire(lock := Lock(name), PR))
        while any(wire.links.values()):
            for (source, target), link in tuple(wire.links.items()):
                while link:
                    wire.act(target, Received(source, link.pop(0)))
        assert lock.mode is PR
        wire.__init__(1, 2, 3)  # type: ignore[misc]
        wire.enter(1)
        wire.settle()


def test_while_a_member_is_leaving_only_its_own_trees_wait(wire: Wire) -> None:
    lost, kept = Name(root_with_directory(wire, 1)), Name(root_with_directory(wire, 2))
    wire.lock(3, lost, NL)
    wire.lock(1, kept, NL)
    wire.act(2, Acquire(theirs := Lock(lost, "at hand"), PR))
    wire.settle()
    del wire.cores[3]
    wire.links.clear()
    for node in (1, 2):
        wire.act(node, Enter(2, {1: 1, 2: 2}, {3: 3}, 1))
    wire.settle()
    assert wire.lock(2, kept, PR).mode is PR
    wire.act(1, Acquire(waiter := Lock(lost), EX))
    wire.act(2, Release(theirs))
    wire.settle()
    assert waiter.mode is None
    for node in (1, 2):
        wire.act(node, Enter(3, {1: 1, 2: 2}, {}, 2))
    wire.settle()
    assert waiter.mode is EX


def test_what_one_that_is_leaving_holds_is_still_its_own(wire: Wire) -> None:
    name = Name(root_with_directory(wire, 2))
    wire.lock(1, name, NL)
    wire.lock(3, name, EX)
    del wire.cores[3]
    wire.links.clear()
    for node in (1, 2):
        wire.act(node, Enter(2, {1: 1, 2: 2}, {3: 3}, 1))
    wire.act(2, Acquire(waiter := Lock(name), PR, int(Flags.VALBLK)))
    wire.settle()
    assert waiter.mode is None
    for node in (1, 2):
        wire.act(node, Enter(3, {1: 1, 2: 2}, {}, 2))
    wire.settle()
    assert (waiter.mode, waiter.lvb_valid) == (PR, False)


def test_a_second_failure_restarts_the_recovery(wire: Wire) -> None:
    name = Name(root_with_directory(wire, 2))
    held = wire.lock(3, name, EX)  # node 3 masters it
    wire.act(1, Acquire(waiter := Lock(name), EX))
    wire.settle()
    del wire.cores[2]
    wire.enter(2)
    wire.act(3, Received(1, wire.links[1, 3].pop(0)))  # half a round
    del wire.cores[3]
    wire.links.clear()
    wire.enter(3)
    wire.settle()
    assert waiter.mode is EX
    assert held.mode is EX  # the dead do not know


def test_large_states_are_told_in_pages_and_slices(wire: Wire) -> None:
    root = root_with_directory(wire, 2)
    names = [Name(root, b"%d" % n) for n in range(4 * PAGE)]
    wire.lock(1, Name(root), NL)
    locks = [Lock(name) for name in names]
    for lock in locks:
        wire.act(3, Acquire(lock, PR))
    wire.settle()
    del wire.cores[1]
    wire.enter(2)
    pages = []
    while any(wire.links.values()) or any(c.deadline_s <= 0.0 for c in wire.cores.values()):
        wire.wait(0.0)
        for (source, target), link in tuple(wire.links.items()):
            if link and target in wire.cores:
                message = link.pop(0)
                if isinstance(message, Locks) and message.records:
                    pages.append(len(message.records))
                wire.act(target, Received(source, message))
            else:
                link.clear()
    assert len(pages) > 3
    assert sum(pages) == len(locks)
    assert max(pages) <= PAGE
    assert len(wire.cores[2].mastery.copies) == len(locks)
    wire.settle()


def test_messages_of_the_epoch_to_come_wait_for_it(wire: Wire) -> None:
    members = dict(wire.cores[1].here.members)
    assert wire.act(1, Received(2, Seats(2, (), last=True))) == []
    assert wire.act(1, Received(2, Reigns(2, 2, ()))) == []
    wire.act(1, Enter(2, members))
    assert wire.cores[1].recovery.awaited()["pages"] == [3]


def test_losing_everything_ends_every_wait_once(wire: Wire) -> None:
    name = Name(root_with_directory(wire, 2))
    held = wire.lock(1, name, EX)
    wire.act(1, Acquire(waiting := Lock(name), EX))
    wire.act(1, Lose())
    assert wire.completed[-1] == (waiting, Status.LOST)
    assert held.mode is None
    with pytest.raises(LockLost):
        wire.act(1, Release(held))
    assert wire.act(1, Enter(2, dict(wire.cores[1].here.members))) == []
    wire.act(1, Acquire(late := Lock(name), NL))
    assert wire.completed[-1] == (late, Status.LOST)


def test_a_direct_request_to_a_node_that_gave_the_root_up_finds_its_way(wire: Wire) -> None:
    root = root_with_directory(wire, 2)
    other = wire.lock(1, Name(root), EX)
    lock = Lock(Name(root))
    wire.act(3, Acquire(lock, EX))
    wire.settle()
    wire.act(1, Release(other))
    assert lock.id
    stray = Request(1, 3, 99, root, b"leaf", NL, 0, "", Route.DIRECT, 3)
    wire.settle()
    wire.act(3, Release(lock))
    wire.settle()
    wire.wait(KEEP_S)
    wire.settle()
    wire.act(1, Received(3, stray))
    assert [m.route for m in wire.links[1, 2] if isinstance(m, Request)] == [Route.ASK]
