import pytest

from clusterfs.store.objects import Discard, Version, stripe_object
from clusterfs.store.outcomes import Outcomes
from clusterfs.store.records import Prepared, ResolvedChange

OBJECT = stripe_object(1, 1)


def prepared(client: int, sequence: int) -> Prepared:
    change = ResolvedChange(OBJECT, 1, Version(0, 0), Version(1, 1), [Discard(0, 1)])
    return Prepared(client, sequence, 1, [change])


def test_the_watermark_swallows_what_is_below() -> None:
    outcomes = Outcomes()
    for sequence in (1, 3, 7):
        outcomes.add(5, sequence)
    assert [outcomes.applied(5, n) for n in (1, 2, 3, 7)] == [True, False, True, True]
    outcomes.set_stable(5, 4)
    assert [outcomes.applied(5, n) for n in (2, 4, 5, 7)] == [True, True, False, True]
    assert outcomes.clients[5].above == {7}
    outcomes.set_stable(5, 2)
    assert outcomes.clients[5].stable == 4
    assert not outcomes.applied(6, 1)


def test_prepared_objects_are_locked_until_decided() -> None:
    outcomes = Outcomes()
    outcomes.prepare(prepared(1, 2))
    assert outcomes.locked == {OBJECT: (1, 2)}
    with pytest.raises(AssertionError):
        outcomes.forget_client(1)
    assert outcomes.decide(1, 2, committed=True) is not None
    assert (outcomes.locked, outcomes.outcome(1, 2)) == ({}, "committed")
    assert outcomes.decide(1, 9, committed=False) is None
    assert outcomes.outcome(1, 9) == "aborted"
    assert outcomes.outcome(1, 8) is None
    outcomes.forget_outcomes(1, 9)
    assert (outcomes.outcome(1, 2), outcomes.outcome(1, 9)) == (None, "aborted")
    outcomes.forget_client(1)
    assert outcomes.outcome(1, 9) is None


def test_changes_load_to_the_same_state() -> None:
    table: dict[bytes, bytes] = {}

    def store(outcomes: Outcomes) -> None:
        for key, value in outcomes.take_changes():
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value

    outcomes = Outcomes()
    outcomes.add(5, 3)
    outcomes.add(6, 1)
    outcomes.set_stable(5, 1)
    outcomes.prepare(prepared(7, 1))
    outcomes.decide(8, 1, committed=False)
    store(outcomes)
    outcomes.forget_client(6)
    outcomes.add(5, 9)
    store(outcomes)
    found = Outcomes()
    for key, value in table.items():
        found.load(key, value)
    assert {c: (k.stable, k.above) for c, k in found.clients.items()} == {5: (1, {3, 9})}
    assert (found.prepared, found.locked) == (outcomes.prepared, outcomes.locked)
    assert found.decided == {(8, 1): False}
    assert found.take_changes() == []
