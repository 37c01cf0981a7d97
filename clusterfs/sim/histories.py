"""What clients wrote down of their operations, as histories that can be checked. PURE.

A cluster promises less than a single machine in one point: what was written and not yet synced may
go with the node that it was written on, unless another node has seen it. So a write counts as
certain only if it was synced through the same open file before its node was lost, or if its node
was not lost since; else it may have taken effect at any later time, or never. And what the node's
own clients saw of such writes proves nothing about the others.

Names are certain at once: they are in the memory of every replica in sync before the call returns.

A blackout is a moment when the memory of all replicas in sync may have gone together, so that only
what is on disks counts: what was done in the last seconds before, and what was seen of it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from clusterfs.sim.file_models import EMPTY_TREE, NOTHING, STRANGER, name, tree
from clusterfs.sim.linearizability import Operation, Verdict, check

_DURABLE_NS = 10 * 10**9  # nodes sync by themselves every second
_LATE_NS = 10**9  # a loss may be noted after the operations that it interrupted

Losses = Mapping[int, Sequence[int]]  # of each node: when it was lost


class Record(NamedTuple):
    """One operation as a client wrote it down; times in nanoseconds of one clock."""

    node: int
    client: int
    thing: str
    action: tuple[Any, ...]
    invoked: int
    returned: int | None  # None: the client did not live to see it
    result: Any = None
    error: int | None = None  # errno
    handle: int = 0  # the open file that it went through, a number of the client's own

    @property
    def succeeded(self) -> bool:
        """Whether its result is known."""
        return self.returned is not None and self.error is None


def parsed(lines: Iterable[Mapping[str, Any]], node: int, client: int) -> Iterator[Record]:
    """Put the beginnings and ends that one client noted together."""
    begun: Mapping[str, Any] | None = None
    for line in lines:
        if "odd" in line:
            continue
        if "action" in line:
            begun = line
        elif begun is not None:
            yield _record(begun, line, node, client)
            begun = None
    if begun is not None:
        yield _record(begun, {}, node, client)


def _record(begun: Mapping[str, Any], ended: Mapping[str, Any], node: int, client: int) -> Record:
    return Record(
        node,
        client,
        begun["thing"],
        tuple(begun["action"]),
        begun["at"],
        ended.get("at"),
        ended.get("result"),
        ended.get("error"),
        ended.get("handle", 0),
    )


def of_data(
    records: Collection[Record], losses: Losses, blackouts: Sequence[int] = ()
) -> list[Operation]:
    """Return the history of one file's content: actions write, append, truncate, read, size."""
    writes = [r for r in records if r.action[0] in ("write", "append")]
    synced = [r for r in records if r.action[0] == "sync" and r.succeeded]
    uncertain = {
        w.action[1]: w.node
        for w in writes
        if not _certain(w, synced, [*losses.get(w.node, ()), *blackouts])
    }
    found = []
    for record in records:
        kind, dark = record.action[0], _just_before(record, blackouts)
        if kind in ("write", "append"):
            sure = record.succeeded and record.action[1] not in uncertain
            found.append(_operation(record, record.result) if sure else _unknown(record))
        elif kind == "truncate":
            sure = record.succeeded and not dark
            found.append(_operation(record, None) if sure else _unknown(record))
        elif kind == "sync" or dark or not record.succeeded:
            continue
        elif not _local_only(record, uncertain, writes):
            found.append(_operation(record, _hashable(record.result)))
    return _without_unseen(found)


def _without_unseen(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out what may have been written, but nobody has read: it explains nothing but sizes.

    Each such write doubles what a search must look at. Sizes that it may explain go too.
    """
    seen: set[Any] = set()
    for operation in operations:
        if operation.action[0] == "read":
            content = operation.result
            seen.update(content if isinstance(content, tuple) else (content,))
    unseen = [
        operation
        for operation in operations
        if operation.returned is None
        and operation.action[0] in ("write", "append")
        and operation.action[1] not in seen
    ]
    if not unseen:
        return list(operations)
    first = min(operation.invoked for operation in unseen)
    left_out = set(unseen) | {
        operation
        for operation in operations
        if operation.action[0] == "size" and (operation.returned or first) >= first
    }
    return [operation for operation in operations if operation not in left_out]


def _certain(write: Record, synced: Iterable[Record], lost: Sequence[int]) -> bool:
    """Tell whether a write that succeeded can no longer be lost, or was not."""
    same = [
        s.returned
        for s in synced
        if s.client == write.client and s.handle == write.handle and s.invoked >= write.invoked
    ]
    safe_at = min((at for at in same if at is not None), default=None)
    return not any(at > write.invoked and (safe_at is None or at < safe_at) for at in lost)


def _local_only(read: Record, uncertain: Mapping[int, int], writes: Iterable[Record]) -> bool:
    """Tell whether a read depends on what its own node wrote, and may have lost since."""
    if read.action[0] == "read":
        seen = read.result if isinstance(read.result, (list, tuple)) else (read.result,)
        return any(uncertain.get(value) == read.node for value in seen)
    return any(
        w.action[1] in uncertain and w.node == read.node and w.invoked <= (read.returned or 0)
        for w in writes
    )


def _just_before(record: Record, blackouts: Iterable[int]) -> bool:
    end = record.invoked if record.returned is None else record.returned
    return any(record.invoked <= dark <= end + _DURABLE_NS for dark in blackouts)


def of_locks(
    records: Collection[Record], losses: Losses, everything: Iterable[Record] = ()
) -> list[Operation]:
    """Return the history of one exclusive lock: actions lock, unlock; each client has its own.

    What a node held when it was lost ends at some time from then on, and may be taken again when it
    is back, if nobody else has had it; so its unlocking proves nothing. Who got an error instead of
    a lock may have had it for a while.

    A node that was stopped notes its loss when it goes on, long after the others had it removed. So
    a lock may end from the last operation on that it is known to have served, among `everything`
    that all clients did.
    """
    served = [
        (record.node, record.invoked, record.returned)
        for record in (*records, *everything)
        if record.returned is not None and record.succeeded
    ]
    found = []
    for record in sorted(records, key=lambda record: record.invoked):
        who = record.action[1]
        if record.action[0] == "unlock":
            continue
        if not record.succeeded:
            found += [_unknown(record), Operation(record.invoked, None, ("end", who))]
            continue
        found.append(_operation(record, record.result))
        if not record.result:
            continue
        unlock = _unlock_of(record, records)
        until = unlock.returned if unlock and unlock.succeeded else None
        lost = [
            at
            for at in losses.get(record.node, ())
            if at >= record.invoked and (until is None or at <= until + _LATE_NS)
        ]
        if lost:
            before = min(lost) - _LATE_NS
            since = max(
                begun
                for node, begun, ended in served
                if node == record.node and (ended <= before or begun == record.invoked)
            )
            found += [
                Operation(since, None, ("end", who)),
                Operation(since, None, ("lock", who)),
                Operation(since, None, ("end", who)),
            ]
        elif unlock and unlock.succeeded:
            found.append(_operation(unlock, None))
        else:
            found.append(Operation((unlock or record).invoked, None, ("end", who)))
    return found


def _unlock_of(lock: Record, records: Iterable[Record]) -> Record | None:
    """Return what the client did next with a lock that it got."""
    later = [r for r in records if r.client == lock.client and r.invoked > lock.invoked]
    following = min(later, key=lambda record: record.invoked, default=None)
    return following if following and following.action[0] == "unlock" else None


def of_names(
    records: Collection[Record], losses: Losses, blackouts: Sequence[int] = ()
) -> list[Operation]:
    """Return the history of names: actions create, unlink, rename, stat, list.

    Two successes say only that names are as they were asked to be, not who made them so; such a
    call counts as one of unknown outcome:
      * of a node that was lost meanwhile: it looked, once it was back, whether it was done;
      * of a rename, while another client renames the same to the same: Linux looks the two names up
        one after the other, and does nothing if they lead to one file.

    The file that a create made goes by its inode number, if the client learned it; else by the
    number that the client gave the creation, negative. An inode of which nobody knows who made it
    is a STRANGER: any of those.
    """
    made = {r.result for r in records if r.action[0] == "create" and r.succeeded and r.result}
    renames = [record for record in records if record.action[0] == "rename"]
    found = []
    for record in records:
        kind = record.action[0]
        action, result = record.action, _hashable(record.result)
        if kind == "create":
            _, name, number = record.action
            action = (kind, name, record.result or -number)
            result = bool(record.result)
        elif kind == "stat" and result not in made and result is not None:
            result = STRANGER
        elif kind == "list" and record.succeeded:
            result = frozenset(record.result)
        dark = _just_before(record, blackouts)
        if record.succeeded and not dark and not _maybe_of_another(record, renames, losses):
            found.append(record_as(record, action, result))
        elif kind not in ("stat", "list"):
            found.append(Operation(record.invoked, None, action))
    return found


def _maybe_of_another(record: Record, renames: Iterable[Record], losses: Losses) -> bool:
    """Tell whether what succeeded may have been done by somebody else."""
    if record.action[0] not in ("unlink", "rename") or not record.result:
        return False
    begin, end = record.invoked, record.returned or record.invoked
    if any(begin <= lost <= end + _LATE_NS for lost in losses.get(record.node, ())):
        return True
    return any(
        other is not record
        and other.action == record.action
        and other.invoked <= end
        and (other.returned is None or other.returned >= begin)
        for other in renames
    )


class Names(NamedTuple):
    """What a check of names found."""

    verdict: Verdict
    apart: bool  # all together they were too hard to check; each name alone was not


def check_names(operations: Sequence[Operation], limit: int) -> Names:
    """Check a history of names as `of_names` returns it.

    If that is too hard, each name is checked alone, with what a rename takes from it or brings as
    an operation on it: that finds less, but what it finds is as true.
    """
    whole = check(operations, EMPTY_TREE, tree, limit=limit)
    if whole.linearizable is not None:
        return Names(whole, apart=False)
    verdicts = [check(some, NOTHING, name, limit=limit) for some in by_name(operations).values()]
    for verdict in verdicts:
        if verdict.linearizable is False:
            return Names(verdict, apart=True)
    decided = all(verdict.linearizable for verdict in verdicts)
    return Names(whole._replace(linearizable=True) if decided else whole, apart=decided)


def by_name(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Return the history of each name alone, for the model `name`."""
    operations = list(operations)
    found: dict[str, list[Operation]] = {}

    def note(operation: Operation, of: str, result: Any, *action: Any) -> None:
        found.setdefault(of, []).append(operation._replace(action=action, result=result))

    for operation in operations:
        kind, result = operation.action[0], operation.result
        if kind == "create":
            note(operation, operation.action[1], result, kind, operation.action[2])
        elif kind in ("unlink", "rename"):
            note(operation, operation.action[1], result, "remove")
        if kind == "rename":
            note(operation, operation.action[2], result, "arrive")
        elif kind == "stat":
            note(operation, operation.action[1], result, kind)
    for operation in operations:
        if operation.action[0] == "list":
            prefix = f"{operation.action[1]}/"
            for one in [one for one in found if one.startswith(prefix)]:
                note(operation, one, one.removeprefix(prefix) in operation.result, "exists")
    return found


def record_as(record: Record, action: tuple[Any, ...], result: Any) -> Operation:
    """Return the operation with another action and result."""
    return Operation(record.invoked, record.returned, action, result)


def _operation(record: Record, result: Any) -> Operation:
    return record_as(record, record.action, result)


def _unknown(record: Record) -> Operation:
    return Operation(record.invoked, None, record.action)


def _hashable(result: Any) -> Any:
    return tuple(result) if isinstance(result, list) else result
