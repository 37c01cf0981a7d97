"""What a failing round leaves: the few operations that cannot all be true, and everything in files.

The shortest beginning of a history that cannot be explained ends with the operation at which it
breaks. Of what was only looked at before, everything is left out that is not needed to see that.
"""

import bisect
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from clusterfs.sim.histories import Record
from clusterfs.sim.linearizability import Operation, State, Step, check

ROOT = Path(__file__).parents[2] / "build" / "faults"  # not below TMPDIR: it outlives the run
_LIMIT = 20_000  # configurations of each attempt to leave something out
_LOOKS = ("read", "size", "stat", "list", "exists")
_SHOWN = 14

Broken = Callable[[Sequence[Operation]], bool]


def core(operations: Sequence[Operation], initial: State, step: Step) -> list[Operation]:
    """Return the operations of a history that cannot be explained that show it; [] if none do."""

    def broken(some: Sequence[Operation]) -> bool:
        return check(some, initial, step, limit=_LIMIT).linearizable is False

    some = _until_broken(operations, broken)
    return _needed(some, broken) if some else []


def _until_broken(operations: Sequence[Operation], broken: Broken) -> list[Operation]:
    """Return the history up to the return at which it breaks; later returns are unknown."""
    ends = sorted(o.returned for o in operations if o.returned is not None)
    first = bisect.bisect_left(ends, 1, key=lambda end: int(broken(_until(operations, end))))
    return _until(operations, ends[first]) if first < len(ends) else []


def _until(operations: Iterable[Operation], end: int) -> list[Operation]:
    found = []
    for operation in operations:
        if operation.returned is not None and operation.returned <= end:
            found.append(operation)
        elif operation.invoked <= end and operation.action[0] not in _LOOKS:
            found.append(Operation(operation.invoked, None, operation.action))
    return found


def _needed(operations: list[Operation], broken: Broken) -> list[Operation]:
    """Leave out looks, half of what is left to try at a time, while it stays broken."""
    looks = [o for o in operations if o.action[0] in _LOOKS and o.returned is not None]
    size = len(looks)
    while size:
        for start in range(0, len(looks), size):
            part = set(looks[start : start + size])
            fewer = [operation for operation in operations if operation not in part]
            if part and broken(fewer):
                operations = fewer
                looks = [look for look in looks if look not in part]
                break
        else:
            size //= 2
    return operations


def told(thing: str, operations: Sequence[Operation]) -> list[str]:
    """Return a few lines that show a core: what was seen, and what was done to the same names."""
    looks = [o for o in operations if o.action[0] in _LOOKS]
    last = max(operations, key=lambda o: (o.returned is not None, o.returned or 0))
    names = {part for o in (*looks, last) for part in o.action[1:] if isinstance(part, str)}
    since = min((o.invoked for o in looks), default=last.invoked)
    shown = [o for o in operations if o in looks or o is last or _concerns(o, names, since)]
    shown.sort(key=lambda o: o.invoked)
    return [
        f"{thing}: these cannot all be true (s before the last one's end; ? = perhaps, or later):",
        *(f"  {_line(o, last.returned or 0)}" for o in shown[-_SHOWN:]),
    ]


def _concerns(operation: Operation, names: set[str], since: int) -> bool:
    """Tell whether a change may have to do with what was seen."""
    recent = operation.returned is None or operation.returned >= since - 10**10
    near = any(
        part in names or str(part).partition("/")[0] in names for part in operation.action[1:]
    )
    return recent and (near or not names)


def _line(operation: Operation, end: int) -> str:
    returned = "?" if operation.returned is None else f"{(operation.returned - end) / 1e9:.4f}"
    result = "?" if operation.returned is None else operation.result
    return f"{(operation.invoked - end) / 1e9:.4f}..{returned} {operation.action} -> {result}"


def keep(name: str, records: Iterable[Record], wrong: Sequence[str], logs: Iterable[Path]) -> Path:
    """Write a round's history, what was found, and the logs to files; returns their folder."""
    folder = ROOT / f"{name}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "history.jsonl").open("w") as file:
        for record in sorted(records, key=lambda record: record.invoked):
            file.write(json.dumps(record._asdict()) + "\n")
    (folder / "wrong.txt").write_text("\n".join(wrong) + "\n")
    for log in logs:
        if log.exists():
            shutil.copy(log, folder)
    return folder
