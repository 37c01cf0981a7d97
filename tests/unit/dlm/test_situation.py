from collections import Counter

from dlm.core.situation import Situation
from dlm.effects import Send
from dlm.messages import Cancel

ROOTS = [b"root %d" % n for n in range(3000)]


def situation(*members: int) -> Situation:
    here = Situation(1, 10)
    here.members = {node: node * 10 for node in members}
    return here


def test_directory_nodes_share_the_roots_evenly() -> None:
    here = situation(1, 2, 3, 4)
    share = Counter(map(here.directory_of, ROOTS))
    assert set(share) == {1, 2, 3, 4}
    assert max(share.values()) < 1.15 * len(ROOTS) / 4


def test_a_join_moves_only_the_joiners_share() -> None:
    before, after = situation(1, 2, 3, 4), situation(1, 2, 3, 4, 5)
    moved = {
        after.directory_of(r) for r in ROOTS if before.directory_of(r) != after.directory_of(r)
    }
    assert moved == {5}


def test_messages_to_ourselves_stay_inside() -> None:
    here = situation(1, 2)
    here.send(1, Cancel(1, 7))
    here.send(2, Cancel(1, 8))
    assert list(here.local) == [Cancel(1, 7)]
    assert here.effects == [Send(2, Cancel(1, 8))]


def test_another_start_of_a_node_is_another_node() -> None:
    here = situation(1, 2)
    assert here.alive(2, 20)
    assert not here.alive(2, 21)
    assert not here.alive(3, 30)
