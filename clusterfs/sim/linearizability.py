"""Is a concurrent history one that a sequential object could have had? PURE.

The search is that of Wing and Gong (1993), "Testing and verifying atomic objects", with Lowe's
memory of configurations already seen (2017, "Testing for linearizability"): of the operations that
no other must precede, one after the other is tried as the next to take effect; a set of operations
together with the state that they led to is looked at once.

An operation whose outcome is unknown (its client died, or got an error) may take effect at any time
after it was invoked, or never. Histories of different objects are checked apart: linearizability is
local (Herlihy and Wing 1990), which is what makes long histories affordable.

Invariants:
  * a verdict "violated" is a proof; "linearizable" comes with an order that explains everything;
  * the search ends: after `limit` configurations it says that it does not know.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

UNKNOWN = object()  # the result of an operation whose outcome nobody learned

State = Hashable
Step = Callable[[Any, Any, Any], Any]


class Operation(NamedTuple):
    """One call on one object; times are integers of one clock."""

    invoked: int
    returned: int | None  # None: its outcome is unknown
    action: Any
    result: Any = UNKNOWN


class Verdict(NamedTuple):
    """What a check found."""

    linearizable: bool | None  # None: the search was given up
    explained: tuple[Operation, ...]  # an order of all, or of the most that could be explained
    stuck: tuple[Operation, ...] = ()  # of which none can come next


def check(
    operations: Sequence[Operation], initial: State, step: Step, *, limit: int = 1_000_000
) -> Verdict:
    """Look for an order of the operations that explains every result.

    `step(state, action, result)` returns the state after an action that gives this result (UNKNOWN:
    any), or None if it cannot give it in this state. States are hashable, and not None.
    """
    return _Search(operations, initial, step).run(limit)


class _Node(NamedTuple):
    done: int  # a bit for each operation that took effect
    state: State
    last: int  # the operation that led here
    before: "_Node | None"
    length: int  # of the way here


class _Search:
    def __init__(self, operations: Sequence[Operation], initial: State, step: Step) -> None:
        self._operations = sorted(operations, key=lambda operation: operation.invoked)
        self._step = step
        self._start = _Node(0, initial, -1, None, 0)
        self._required = 0
        for position, operation in enumerate(self._operations):
            if operation.returned is not None:
                self._required |= 1 << position

    def run(self, limit: int) -> Verdict:
        best, todo = self._start, [self._start]
        seen = {(0, self._start.state)}
        while todo:
            node = todo.pop()
            if self._required & ~node.done == 0:
                return Verdict(True, self._order(node))
            if node.length > best.length:
                best = node
            for follower in self._followers(node):
                key = (follower.done, follower.state)
                if key not in seen:
                    seen.add(key)
                    todo.append(follower)
            if len(seen) > limit:
                return Verdict(None, self._order(best), self._stuck(best))
        return Verdict(False, self._order(best), self._stuck(best))

    def _followers(self, node: _Node) -> list[_Node]:
        """Return what may come next; the likeliest last, where the search goes on."""
        found = []
        for position in self._candidates(node.done):
            operation = self._operations[position]
            state = self._step(node.state, operation.action, operation.result)
            if state is not None:
                bit = 1 << position
                found.append(_Node(node.done | bit, state, position, node, node.length + 1))
        found.sort(key=self._unlikely, reverse=True)
        return found

    def _unlikely(self, node: _Node) -> tuple[bool, int]:
        invoked, returned = self._operations[node.last][:2]
        return returned is None, invoked if returned is None else returned

    def _candidates(self, done: int) -> Iterator[int]:
        """Yield the operations that were invoked before any other that is left returned."""
        position = (~done & (done + 1)).bit_length() - 1  # the first that is left
        chosen: list[int] = []
        earliest: int | None = None
        while position < len(self._operations):
            operation = self._operations[position]
            if earliest is not None and operation.invoked > earliest:
                break
            if not done >> position & 1:
                chosen.append(position)
                if operation.returned is not None and (
                    earliest is None or operation.returned < earliest
                ):
                    earliest = operation.returned
            position += 1
        return (
            position
            for position in chosen
            if earliest is None or self._operations[position].invoked <= earliest
        )

    def _order(self, node: _Node) -> tuple[Operation, ...]:
        positions = []
        step: _Node | None = node
        while step is not None and step.last >= 0:
            positions.append(step.last)
            step = step.before
        return tuple(self._operations[position] for position in reversed(positions))

    def _stuck(self, node: _Node) -> tuple[Operation, ...]:
        return tuple(self._operations[position] for position in self._candidates(node.done))
