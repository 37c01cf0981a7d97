"""The checker of histories against brute force, known histories and planted errors."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs.sim import file_models
from clusterfs.sim.linearizability import UNKNOWN, Operation, check

W, R = "write", "read"


def op(invoked: int, returned: int | None, *action: Any, result: Any = UNKNOWN) -> Operation:
    return Operation(invoked, returned, action, result)


def brute_force(operations: list[Operation], initial: Any, step: Any) -> bool:
    """Every subset of those of unknown outcome, in every order that the times allow."""
    unknown = [o for o in operations if o.returned is None]
    known = [o for o in operations if o.returned is not None]
    for size in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, size):
            for order in itertools.permutations([*known, *chosen]):
                if _in_time(order) and _explains(order, initial, step):
                    return True
    return False


def _in_time(order: tuple[Operation, ...]) -> bool:
    return all(
        b.returned is None or b.returned >= a.invoked for a, b in itertools.combinations(order, 2)
    )


def _explains(order: tuple[Operation, ...], state: Any, step: Any) -> bool:
    for operation in order:
        state = step(state, operation.action, operation.result)
        if state is None:
            return False
    return True


@st.composite
def histories(draw: st.DrawFn, actions: st.SearchStrategy[tuple[Any, Any]]) -> list[Operation]:
    found = []
    for _ in range(draw(st.integers(1, 6))):
        action, result = draw(actions)
        invoked = draw(st.integers(0, 12))
        lost = draw(st.booleans()) and draw(st.booleans())
        returned = None if lost else invoked + draw(st.integers(0, 6))
        found.append(Operation(invoked, returned, action, UNKNOWN if lost else result))
    return found


NAMES = st.sampled_from(["a/x", "a/y", "b/x"])
REGISTER = st.one_of(
    st.tuples(st.tuples(st.just(W), st.integers(1, 3)), st.none()),
    st.tuples(st.tuples(st.just(R)), st.integers(0, 3)),
)
LOG = st.one_of(
    st.tuples(st.tuples(st.just("append"), st.integers(1, 2)), st.none()),
    st.tuples(st.just(("truncate",)), st.none()),
    st.tuples(st.just(("size",)), st.integers(0, 2)),
    st.tuples(st.just(("read",)), st.lists(st.integers(1, 2), max_size=2).map(tuple)),
)
TREE = st.one_of(
    st.tuples(st.tuples(st.just("create"), NAMES, st.integers(1, 2)), st.booleans()),
    st.tuples(st.tuples(st.just("unlink"), NAMES), st.booleans()),
    st.tuples(st.tuples(st.just("rename"), NAMES, NAMES), st.booleans()),
    st.tuples(st.tuples(st.just("stat"), NAMES), st.sampled_from([None, 1, 2])),
    st.tuples(st.just(("list", "a")), st.sampled_from([(), ("x",), ("x", "y")]).map(frozenset)),
)
MUTEX = st.one_of(
    st.tuples(st.tuples(st.just("lock"), st.integers(1, 2)), st.booleans()),
    st.tuples(st.tuples(st.just("unlock"), st.integers(1, 2)), st.none()),
)


@pytest.mark.parametrize(
    ("actions", "initial", "step"),
    [
        (REGISTER, file_models.EMPTY_REGISTER, file_models.register),
        (LOG, file_models.EMPTY_LOG, file_models.log),
        (TREE, file_models.EMPTY_TREE, file_models.tree),
        (MUTEX, file_models.FREE, file_models.mutex),
    ],
    ids=["register", "log", "tree", "mutex"],
)
def test_it_agrees_with_brute_force(actions: Any, initial: Any, step: Any) -> None:
    @settings(max_examples=300)
    @given(histories(actions))
    def compare(operations: list[Operation]) -> None:
        verdict = check(operations, initial, step)
        assert verdict.linearizable is brute_force(operations, initial, step)
        if verdict.linearizable:
            assert _in_time(verdict.explained)
            assert _explains(verdict.explained, initial, step)

    compare()


def registers(*operations: Operation) -> bool | None:
    return check(operations, file_models.EMPTY_REGISTER, file_models.register).linearizable


def test_what_returned_at_time_zero_came_before_what_was_invoked_later() -> None:
    read = op(0, 0, R, result=1)
    assert not registers(read, op(1, 1, W, 1), op(0, 1, W, 2))
    assert registers(read, op(0, 1, W, 1))


def test_a_stale_read_is_found() -> None:
    assert not registers(op(0, 1, W, 1), op(2, 3, W, 2), op(4, 5, R, result=1))


def test_a_read_during_a_write_may_see_either_but_time_does_not_run_backwards() -> None:
    write = op(0, 10, W, 1)
    assert registers(write, op(1, 2, R, result=0), op(3, 4, R, result=1))
    assert not registers(write, op(1, 2, R, result=1), op(3, 4, R, result=0))


def test_what_may_have_failed_takes_effect_once_or_never() -> None:
    lost = op(0, None, W, 1)
    assert registers(lost, op(5, 6, R, result=0), op(7, 8, R, result=1))
    assert registers(lost, op(5, 6, R, result=0))
    assert not registers(lost, op(2, 3, R, result=1), op(5, 6, R, result=0))


def test_a_lost_append_is_found_and_named() -> None:
    final = op(6, 7, "read", result=(2,))
    verdict = check(
        [op(0, 1, "append", 1), op(2, 3, "append", 2), final],
        file_models.EMPTY_LOG,
        file_models.log,
    )
    assert verdict.linearizable is False
    assert verdict.stuck == (final,)


def test_two_holders_of_one_lock_are_found() -> None:
    held = [op(0, 1, "lock", 1, result=True), op(2, 3, "lock", 2, result=True)]
    assert check(held, file_models.FREE, file_models.mutex).linearizable is False


def simulated(source: random.Random, clients: int, count: int) -> list[Operation]:
    """A register as it really is: each operation takes effect somewhere within its time."""
    free_s, now, value, found = [0] * clients, 0, 0, []
    for number in range(1, count + 1):
        client = source.randrange(clients)
        now += source.randrange(1, 5)  # when this one takes effect
        invoked = max(free_s[client], now - source.randrange(1, 20))
        returned = max(now, invoked) + source.randrange(20)
        free_s[client] = returned + 1
        now = max(now, invoked)
        if source.random() < 0.5:
            value = number
            found.append(op(invoked, returned, W, number))
        else:
            found.append(op(invoked, returned, R, result=value))
    return found


def test_long_histories_are_checked_and_one_wrong_read_in_them_is_found() -> None:
    for seed in range(20):
        source = random.Random(seed)
        operations = simulated(source, clients=8, count=500)
        assert registers(*operations), f"seed {seed}"
        reads = [n for n, o in enumerate(operations) if o.action[0] == R and n > 250]
        wrong = source.choice(reads)
        operations[wrong] = operations[wrong]._replace(result=operations[wrong].result - 200)
        assert registers(*operations) is False, f"seed {seed}"


def test_it_gives_up_when_asked_to() -> None:
    lost = [op(0, None, "append", n) for n in range(1, 30)]
    verdict = check([*lost, op(1, 2, "size", result=40)], (), file_models.log, limit=1000)
    assert verdict.linearizable is None
