"""What clients that are gone have done: what is told to those who come back, and what is not."""

from clusterfs.store.objects import ObjectId, Version
from clusterfs.volume.departed import Departed, OutcomeUnknown, Sent
from clusterfs.volume.messages import Touched, Trace
from clusterfs.volume.rollforward import took_place

CLIENT = 7


def test_of_a_client_that_went_it_is_known_what_took_place_and_that_nothing_else_did() -> None:
    departed = Departed()
    departed.note(CLIENT, {5, 7}, stable=3, groups={0, 1})
    assert [departed.took_place(Sent(CLIENT, n, 0)) for n in (2, 3, 4, 5, 6, 7, 8)] == [
        *(True, True, False, True, False, True, False)
    ]


def test_of_groups_that_were_not_in_sync_here_only_what_took_place_is_known() -> None:
    departed = Departed()
    departed.note(CLIENT, {5}, stable=3, groups={1})
    assert departed.took_place(Sent(CLIENT, 5, 0)) is True
    assert departed.took_place(Sent(CLIENT, 4, 0)) is None


def test_others_and_those_of_long_ago_are_not_known() -> None:
    departed = Departed()
    assert departed.took_place(Sent(CLIENT, 1, 0)) is None
    for client in range(CLIENT, CLIENT + 33):
        departed.note(client, {1}, stable=0, groups={0})
    assert departed.took_place(Sent(CLIENT, 1, 0)) is None
    assert departed.took_place(Sent(CLIENT + 1, 1, 0)) is True


def test_only_what_a_replica_in_sync_has_took_place() -> None:
    def trace(sequence: int, *groups: int) -> Trace:
        touched = [Touched(ObjectId(bytes([g])), g, Version(1, 1), deleted=False) for g in groups]
        return Trace(CLIENT, sequence, tuple(touched))

    def serves(node: int, group: int) -> bool:
        return (node, group) in {(1, 0), (2, 1)}

    reports = {1: [trace(1, 0), trace(2, 1)], 2: [trace(3, 0), trace(4, 0, 1)]}
    assert took_place(reports, serves) == {CLIENT: {1, 4}}


def test_the_failure_says_what_to_ask_for() -> None:
    assert OutcomeUnknown(Sent(1, 2, 3)).sent == (1, 2, 3)
