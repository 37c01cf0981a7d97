"""Who waits for a file lock, and because of whom: the ranges of a picture. PURE.

A wait is known on the node of its program, with the command and the path; what is in its way is
known where it is queued: there, if the table is lent to that node, else on the table's keeper.
"""

from collections.abc import Iterator
from typing import NamedTuple

from clusterfs.cli.locks.picture import Picture, Range, Waiting
from clusterfs.cli.locks.waits import Blocker, Party, Wait

_END = 2**63 - 1


class _Program(NamedTuple):
    node: int
    pid: int


def waits_for_ranges(picture: Picture) -> Iterator[Wait]:
    """Yield the waits of all programs for file locks."""
    commands = _commands(picture)
    queued = {
        (waiting.node, waiting.number): waiting
        for node in picture.nodes
        for kept in node.kept_ranges
        for waiting in kept.waiting
    }
    for node in picture.nodes:
        for used in node.ranges:
            for waiting in used.waiting:
                behind = waiting.behind or queued.get((node.node, waiting.number), waiting).behind
                blockers = tuple(
                    Blocker(_party(_Program(who.node, who.pid), commands), None, "holds")
                    for who in behind
                )
                if not behind and not used.borrowed and used.keeper:
                    keeper = Party(used.keeper, "?", "")
                    blockers = (Blocker(keeper, None, "keeps the table and knows"),)
                program = _Program(node.node, waiting.pid)
                yield Wait(
                    _party(program, commands),
                    (used.root, used.leaf),
                    used.path,
                    None,
                    waiting.mode,
                    waiting.wait_s,
                    waiting.pid,
                    waiting.command,
                    f"file lock {_bytes(waiting)}",
                    blockers,
                )


def _commands(picture: Picture) -> dict[_Program, str]:
    found: dict[_Program, str] = {}
    for node in picture.nodes:
        for used in node.ranges:
            found |= {_Program(node.node, held.pid): held.command for held in used.held}
            found |= {_Program(node.node, wait.pid): wait.command for wait in used.waiting}
    return found


def _party(program: _Program, commands: dict[_Program, str]) -> Party:
    command = commands.get(program)
    label = f"pid {program.pid} ({command})" if command else f"pid {program.pid}"
    return Party(program.node, f"file locks of {program.pid}", label)


def _bytes(range_: Range | Waiting) -> str:
    return f"{range_.start}..{'' if range_.last == _END else range_.last}"
