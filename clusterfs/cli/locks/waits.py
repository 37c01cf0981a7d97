"""Who waits for a lock, and because of whom. PURE.

A waiting lock waits for everything that must go before it is served: every granted or converting
lock whose held mode forbids it; a conversion also for the conversions ahead of it, a new lock for
all conversions and for everything ahead of it in its queue (NOORDER: for neither). That is the
grant rule of `dlm/core/resource.py`, read backwards.

On a filesystem the one that waits is the system call, if its node said which, else the lock. A lock
that a node merely keeps, without a system call that uses it, waits for nobody: it is given up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from clusterfs.cli.locks.picture import Copy, Node, Operation, Own, Picture, Resource, Use
from dlm.modes import Flags, Mode

Key = tuple[bytes, bytes]


@dataclass(frozen=True)
class Party:
    """Somebody who holds or waits; equal ones are the same, whatever they hold or wait for."""

    node: int
    key: str  # of what: a system call, an owner, a lock
    label: str = field(compare=False)


class Blocker(NamedTuple):
    """What stands in the way of a wait."""

    party: Party
    mode: str | None  # what it holds; None: it waits ahead
    why: str


class Wait(NamedTuple):
    """One who waits for one lock."""

    party: Party
    name: Key
    path: str
    held: str | None
    wanted: str
    wait_s: float
    pid: int
    command: str
    operation: str
    blockers: tuple[Blocker, ...]


def pid_of(owner: str) -> int:
    """Return the process in an owner of the form "PID OPERATION", or 0."""
    first = owner.partition(" ")[0]
    return int(first) if first.isdecimal() and len(first) <= len(str(2**31)) else 0


def uses_by_name(node: Node) -> dict[Key, Use]:
    """Return what the node's filesystem does with each lock."""
    return {(use.root, use.leaf): use for use in node.uses or ()}


def waits(picture: Picture) -> list[Wait]:
    """Return who waits, longest first."""
    return sorted(_Reader(picture).waits(), key=lambda wait: -wait.wait_s)


class _Reader:
    """One picture, with what is needed to find things in it."""

    def __init__(self, picture: Picture) -> None:
        self._nodes = {node.node: node for node in picture.nodes}
        self._uses = {node.node: uses_by_name(node) for node in picture.nodes}
        self._paths: dict[Key, str] = {}
        for uses in self._uses.values():
            for name, use in uses.items():
                if use.path:
                    self._paths.setdefault(name, use.path)

    def waits(self) -> Iterator[Wait]:
        told: set[tuple[int, Key]] = set()
        for node in self._nodes.values():
            for resource in node.resources:
                name = (resource.root, resource.leaf)
                for copy in resource.blocked:
                    told.add((copy.node, name))
                    yield from self._of_lock(copy, name, tuple(self._blockers(resource, copy)))
        for node in self._nodes.values():
            for own in node.locks:
                name = (own.root, own.leaf)
                if own.requested is not None and (node.node, name) not in told:
                    told.add((node.node, name))
                    yield from self._of_lock(_as_copy(node, own), name, _unknown(own))
        yield from self._local(told)

    def _of_lock(self, copy: Copy, name: Key, blockers: tuple[Blocker, ...]) -> Iterator[Wait]:
        """Yield a wait for every system call behind a waiting lock, or one for the lock."""
        assert copy.requested is not None
        use = self._use(copy.node, name)
        for operation in use.waiting:
            yield self._of_operation(copy.node, name, operation, copy.granted, blockers)
        if not use.waiting:
            pid = pid_of(copy.owner)
            yield Wait(
                self._party(copy, name),
                name,
                self._paths.get(name, ""),
                copy.granted,
                copy.requested,
                copy.wait_s,
                pid,
                "",
                copy.owner.partition(" ")[2] if pid else copy.owner,
                blockers,
            )

    def _of_operation(
        self,
        node: int,
        name: Key,
        operation: Operation,
        held: str | None,
        blockers: tuple[Blocker, ...],
    ) -> Wait:
        return Wait(
            _operation_party(node, operation),
            name,
            self._paths.get(name, ""),
            held,
            operation.mode or "NL",
            operation.wait_s,
            operation.pid,
            operation.command,
            operation.operation,
            blockers,
        )

    def _local(self, told: set[tuple[int, Key]]) -> Iterator[Wait]:
        """Yield the waits for other system calls of the same node."""
        for node, uses in self._uses.items():
            for name, use in uses.items():
                if use.waiting and (node, name) not in told:
                    parties = [_operation_party(node, operation) for operation in use.using]
                    parties = parties or [_lock_party(node, 0, "")]
                    blockers = tuple(Blocker(party, use.mode, "uses") for party in parties)
                    for operation in use.waiting:
                        yield self._of_operation(node, name, operation, use.mode, blockers)

    def _blockers(self, resource: Resource, waiter: Copy) -> Iterator[Blocker]:
        name = (resource.root, resource.leaf)
        for holder, why in _in_the_way(resource, waiter):
            for party in self._parties(holder, name):
                yield Blocker(party, holder.granted, why)

    def _parties(self, copy: Copy, name: Key) -> list[Party]:
        """Return the system calls behind a lock that is in the way, or the lock itself."""
        use = self._use(copy.node, name)
        calls = use.using if copy.granted else ()
        if not calls and copy.requested:
            calls = use.waiting
        parties = [_operation_party(copy.node, operation) for operation in calls]
        return parties or [self._party(copy, name)]

    def _use(self, node: int, name: Key) -> Use:
        return self._uses.get(node, {}).get(name, Use(b""))

    def _party(self, copy: Copy, name: Key) -> Party:
        known = self._nodes.get(copy.node)
        if known is not None and known.uses is None and copy.owner:
            return Party(copy.node, copy.owner, copy.owner)
        use = self._use(copy.node, name)
        state = ""
        if copy.granted and known is not None and known.uses is not None:
            state = "gives it up" if use.revoking else _busy(use)
        return _lock_party(copy.node, copy.id, state)


def _in_the_way(resource: Resource, waiter: Copy) -> Iterator[tuple[Copy, str]]:
    """Yield what must go before `waiter` is served, and why."""
    assert waiter.requested is not None
    wanted, conversion = Mode[waiter.requested], waiter.granted is not None
    ordered = not waiter.flags & Flags.NOORDER
    for holder in resource.granted:
        if holder.granted and not Mode[holder.granted].compatible(wanted):
            yield holder, "holds"
    ahead = True
    for other in resource.converting:
        if other is waiter:
            ahead = False
        elif other.granted and not Mode[other.granted].compatible(wanted):
            yield other, "holds"
        elif ordered and (ahead or not conversion):
            yield other, "is ahead"
    if not conversion and ordered:
        for other in resource.waiting:
            if other is waiter:
                return
            yield other, "is ahead"


def _as_copy(node: Node, own: Own) -> Copy:
    return Copy(node.node, own.id, own.owner, own.mode, own.requested, own.flags, wait_s=own.wait_s)


def _unknown(own: Own) -> tuple[Blocker, ...]:
    """Say who would know what an own lock waits for, when its master is not in the picture."""
    if own.master is None:
        return ()
    return (Blocker(Party(own.master, "?", ""), None, "is the master and knows"),)


def _busy(use: Use) -> str:
    count = abs(use.users) + use.pins
    return f"{count} in use" if count else "keeps it"


def _operation_party(node: int, operation: Operation) -> Party:
    command = f" ({operation.command})" if operation.command else ""
    label = (
        f"pid {operation.pid}{command} {operation.operation}"
        if operation.pid
        else (operation.operation or "daemon")
    )
    return Party(node, f"op {operation.number}", label)


def _lock_party(node: int, number: int, state: str) -> Party:
    label = f"lock {number:08x}" if number else "this node"
    return Party(node, f"lock {number}", f"{label}, {state}" if state else label)


def names_of(picture: Picture) -> Mapping[int, str]:
    """Return what each node is called."""
    names = {silent.node: silent.name for silent in picture.silent if silent.name}
    return names | {node.node: node.name for node in picture.nodes if node.name}
