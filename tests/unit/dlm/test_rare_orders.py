"""Orders of events that few seeds meet, each once a bug: told to the parts of the core by hand."""

from collections.abc import Iterable, Iterator
from itertools import count

from dlm.core.deadlock import Detector
from dlm.core.directory import Directory
from dlm.core.mastery import Mastery
from dlm.core.situation import Situation
from dlm.effects import Send
from dlm.events import Owner
from dlm.messages import (
    Blocker,
    Confirm,
    Hop,
    Mastered,
    Message,
    Remove,
    Removed,
    Request,
    Route,
    Seat,
)
from dlm.modes import Mode

ME, PEER, OTHER = 4, 1, 2
MEMBERS = {PEER: PEER, OTHER: OTHER, ME: ME}


def situation(me: int, epoch: int) -> Situation:
    here = Situation(me, me)
    here.epoch, here.members, here.frozen = epoch, dict(MEMBERS), False
    return here


def root_of(directory: int) -> bytes:
    here = situation(ME, 1)
    return next(
        root for root in map(b"%d".__mod__, count()) if here.directory_of(root) == directory
    )


def request(epoch: int, origin: int, root: bytes, route: Route, term: int = 0) -> Request:
    return Request(epoch, origin, 7, root, b"", Mode.EX, 0, "", route, origin, term)


def said(here: Situation) -> list[Message]:
    messages = [effect.message for effect in here.effects if isinstance(effect, Send)]
    here.effects.clear()
    return messages


def test_a_directory_node_that_is_told_anew_still_counts_what_it_forwarded() -> None:
    here, root = situation(ME, 1), root_of(ME)
    directory = Directory(here)
    directory.enter(skipped=False)
    directory.completed()
    directory.ask(request(1, PEER, root, Route.ASK))
    [mastered] = said(here)
    assert isinstance(mastered, Mastered)
    directory.ask(request(1, OTHER, root, Route.ASK))
    [forward] = said(here)
    assert isinstance(forward, Request)
    here.epoch = 3
    directory.enter(skipped=True)
    directory.told(Seat(root, mastered.term, PEER, PEER))
    directory.remove(PEER, Remove(3, root, mastered.term, forwards=0))
    assert said(here) == []  # the forward is on its way
    directory.remove(PEER, Remove(3, root, mastered.term, forwards=1))
    assert said(here) == [Removed(3, root, mastered.term)]


def test_a_forward_from_before_the_directory_was_told_calls_no_removal_off() -> None:
    here, root = situation(PEER, 3), root_of(ME)
    mastery = Mastery(here, Directory(here))
    tree = mastery.adopt(root, 1)
    tree.removing = True
    mastery.request(ME, request(2, OTHER, root, Route.FORWARDED, tree.term))
    [again] = said(here)
    assert isinstance(again, Request)
    assert (again.route, again.epoch) == (Route.ASK, 3)
    assert tree.removing
    mastery.request(ME, request(3, OTHER, root, Route.FORWARDED, tree.term))
    assert not tree.removing
    assert tree.resources


class Held:
    """A thing on which everybody waits, held by one owner."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def waits(self, _number: int, _place: int) -> bool:
        return True

    def holders(self, _number: int, state: int) -> Iterable[tuple[Owner, int]]:
        return [(self._owner, 1)] if state == Mode.CR else []

    def blockers(self, _node: int, _number: int) -> Iterator[tuple[int, Blocker]]:
        yield PEER, Blocker(0, 8, int(Mode.CR))


def confirmed(found_by: int, held: int | None) -> bool:
    """Tell whether the cycle of an owner that stands behind a wait of ours is confirmed.

    `found_by` is the number of that owner: ours has 5.
    """
    here, owner = situation(PEER, 1), Owner("ours")
    owner.number = 5
    detector = Detector(here, {0: Held(owner)})  # type: ignore[dict-item]
    here.waits.clock = 9
    here.waits.begin((0, 8), owner, 0.0)
    behind = Blocker(0, 3, int(Mode.PR), 8, "ours", PEER, 8)
    hop = Hop(OTHER, 0, found_by, 0, 3, 12, "theirs", "EX", behind, 11, "PR")
    detector.confirm(OTHER, Confirm(1, (hop,), 0, home=False, behind=True, held=held))
    return bool(said(here))


def test_a_cycle_has_no_second_victim_by_way_of_an_order_of_waiting() -> None:
    assert not confirmed(found_by=4, held=int(Mode.CR))  # ours is younger, and finds it itself
    assert confirmed(found_by=6, held=int(Mode.CR))  # theirs is the victim
    assert confirmed(found_by=4, held=None)  # ours holds nothing that they wait for
    assert confirmed(found_by=4, held=int(Mode.EX))  # the queue's node does not know what it holds


def test_the_queues_node_says_what_the_one_that_goes_first_holds() -> None:
    here, owner = situation(ME, 1), Owner("ours")
    detector = Detector(here, {0: Queue(owner)})  # type: ignore[dict-item]
    hop = Hop(OTHER, 0, 4, 0, 3, 12, "theirs", "EX", Queue.behind, 11, "PR")
    detector.confirm(OTHER, Confirm(1, (hop,), 0, home=False))
    [confirm] = said(here)
    assert isinstance(confirm, Confirm)
    assert (confirm.behind, confirm.held) == (True, int(Mode.CR))


class Queue(Held):
    """What keeps a wait waiting: a holder, and behind that one's wait the waiter's own lock."""

    behind = Blocker(0, 3, int(Mode.PR), 8, "ours", PEER, 8)

    def blockers(self, _node: int, _number: int) -> Iterator[tuple[int, Blocker]]:
        yield PEER, Blocker(0, 8, int(Mode.CR))
        yield OTHER, self.behind
