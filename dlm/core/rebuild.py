"""One resource made anew from what its locks' owners reported. PURE.

An owner may not have heard the master's last word, so its report may be behind what the old master
did. For most conversions that is harmless: the old master had granted more, so whatever it granted
to others since fits the weaker mode, too. Two kinds are undecided: a middle conversion (PR to CW or
back), which may have been granted, and a CONVDEADLK one, whose held mode may have been demoted. In
both, the owner relies meanwhile only on `modes.floor`, and we choose a mode that fits the others.

The value block is taken from a lock that has read it and excludes writers since, else it is the
newest copy, as doubtful. (The rules of fs/dlm's recover_lvb.)
"""

from collections.abc import Sequence

from dlm.core.master_copy import Copy
from dlm.core.resource import Resource
from dlm.events import Name
from dlm.messages import Record
from dlm.modes import Flags, Mode, floor, is_middle

Reported = Sequence[tuple[int, Record]]

_CONVDEADLK = int(Flags.CONVDEADLK)


def rebuild(
    name: Name,
    term: int,
    records: Reported,
    now_s: float,
    rules: type[Resource] = Resource,
) -> Resource:
    """Return the resource, as of `now_s`."""
    resource = rules(name.root, name.leaf, term)
    copies = [_copy(node, record, resource) for node, record in records]
    _decide_modes(copies, [record for _, record in records])
    for copy in copies:
        copy.since_s = now_s
    _recover_lvb(resource, records)
    resource.restore(copies)
    return resource


def _copy(node: int, record: Record, resource: Resource) -> Copy:
    copy = Copy(node, record.lock, resource, record.owner)
    copy.granted, copy.flags, copy.uses_lvb = record.granted, record.flags, record.uses_lvb
    if record.sequence:
        copy.requested, copy.sequence = record.requested, record.sequence
    return copy


def _decide_modes(copies: list[Copy], records: Sequence[Record]) -> None:
    """Give each undecided conversion a granted mode that fits all others."""
    if not any(map(_is_undecided, records)):
        return
    undecided: list[tuple[Copy, Record]] = []
    taken: list[Mode] = []
    for copy, record in zip(copies, records, strict=True):
        if _is_undecided(record):
            undecided.append((copy, record))
        elif record.granted is not None:
            taken.append(record.granted)
    undecided.sort(key=_most_constrained_first)
    for copy, record in undecided:
        copy.granted = _fitting(record, taken)
        copy.demoted = copy.granted is Mode.NL is not record.granted
        taken.append(copy.granted)


def _is_undecided(record: Record) -> bool:
    held, wanted = record.granted, record.requested
    if held is None or wanted is None:
        return False
    return floor(held, wanted, record.flags) is not held


def _most_constrained_first(entry: tuple[Copy, Record]) -> tuple[bool, int, int, int]:
    copy, record = entry
    return bool(record.flags & _CONVDEADLK), record.sequence, copy.node, copy.lock


def _fitting(record: Record, taken: Sequence[Mode]) -> Mode:
    held, wanted = record.granted, record.requested
    assert held is not None
    assert wanted is not None
    choices = [held]
    if is_middle(held, wanted):
        choices.append(wanted)
    if record.flags & _CONVDEADLK:
        choices.append(Mode.NL)
    for mode in choices:
        if all(mode.compatible(other) for other in taken):
            return mode
    raise AssertionError((record, taken))


def _recover_lvb(resource: Resource, records: Reported) -> None:
    known = [record for _, record in records if record.lvb is not None]
    seen = max(record.known_sequence for _, record in records)
    if not known:
        resource.lvb_sequence, resource.lvb_valid = seen, not seen
        return
    strong = [record for record in known if _has_current_lvb(record)]
    best = max(strong or known, key=_lvb_sequence)
    resource.lvb, resource.lvb_sequence = best.lvb, max(best.lvb_sequence, seen)
    resource.lvb_valid = bool(strong) and best.lvb_valid


def _has_current_lvb(record: Record) -> bool:
    """Tell whether it read or wrote the LVB last, and no writer was admitted beside it since."""
    if record.granted is None or record.granted <= Mode.CR:
        return False
    return record.lvb_sequence == record.known_sequence


def _lvb_sequence(record: Record) -> int:
    return record.lvb_sequence
