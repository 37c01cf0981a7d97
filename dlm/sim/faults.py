"""How hostile a simulated world is, and how to tell what it did.

A crash is worth most where it hurts: what was going on at that moment is counted by name, so that a
test can say that a set of seeds met every case.
"""

import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from dlm.core.master_copy import Copy
    from dlm.sim.world import Machine

NEVER: Final = float("inf")


class Faults(msgspec.Struct, frozen=True):
    """Times are means of exponential distributions."""

    delay_s: float = 0.001
    view_delay_s: float = 0.005
    detection_s: float = 0.02
    absence_s: float = 0.05
    lease_s: float = 0.02  # from being seen leaving to being gone
    cut_probability: float = 0.3  # of being cut off instead of crashing
    one_way_probability: float = 0.0  # of being cut off in one direction only
    pause_interval_s: float = NEVER
    pause_s: float = 0.02
    split_interval_s: float = NEVER  # between two partitions that heal before anybody is removed
    split_s: float = 0.01
    crash_interval_s: float = 0.1  # between two crashes or removals; infinite: none
    second_crash_probability: float = 0.3  # soon after another one, so during its recovery
    gate_s: float = 0.0  # until a group has rolled forward what lost nodes did; 0: no gates
    removal_probability: float = 0.3  # of being removed alive instead of crashing
    migration_interval_s: float = NEVER  # between two trees that are to move


def some_faults(dice: random.Random) -> Faults:
    """Return crashes and cuts, few or many."""
    return Faults(
        delay_s=dice.choice((0.0005, 0.002, 0.01)),
        view_delay_s=dice.choice((0.001, 0.01)),
        detection_s=dice.choice((0.002, 0.02)),
        absence_s=dice.choice((0.002, 0.05)),
        crash_interval_s=dice.choice((0.03, 0.1, 0.3, NEVER)),
        second_crash_probability=dice.choice((0.0, 0.5)),
    )


def all_faults(seed: int) -> Faults:
    """Return faults of every kind, often enough for a short life."""
    dice = random.Random(seed ^ 0xFA17)
    return msgspec.structs.replace(
        some_faults(dice),
        crash_interval_s=dice.choice((0.02, 0.05, 0.1)),
        one_way_probability=0.5,
        pause_interval_s=dice.choice((0.03, 0.1, NEVER)),
        split_interval_s=dice.choice((0.03, 0.1, NEVER)),
        gate_s=dice.choice((0.0, 0.005, 0.03)),
    )


def circumstances(machine: "Machine", machines: "Iterable[Machine]") -> Iterator[str]:
    """Yield what is going on while this machine goes down."""
    core = machine.core
    if core.ownership.pending:
        yield "with requests under way"
    if any(tree.resources for tree in core.mastery.trees.values()):
        yield "mastering trees"
    if core.mastery.claims.pending_roots():
        yield "with names that the directory does not know"
    if any(c.requested is not None and c.node != machine.node for c in _copies(machine)):
        yield "with others waiting"
    everybody = [other.core for other in machines]
    if len({core.here.epoch for core in everybody}) > 1:
        yield "while a view spreads"
    if any(core.here.leaving for core in everybody):
        yield "while another one is leaving"
    if any(core.recovery.awaited()["pages"] for core in everybody):
        yield "while the directory is told"
    if any(tree.thawing for core in everybody for tree in core.mastery.trees.values()):
        yield "while trees are thawing"
    if any(root.marks for core in everybody for root in core.ownership.roots.values()):
        yield "while trees are without a master"
    yield from _moves(machine, machines)


def _moves(machine: "Machine", machines: "Iterable[Machine]") -> Iterator[str]:
    """Yield what this machine has to do with trees that are on their way."""
    me = machine.node, machine.incarnation
    for other in machines:
        for root, departure in other.core.mastery.departures.items():
            step = "that is handed over" if departure.away else "that is frozen"
            if other is machine:
                yield f"the source of a tree {step}"
            elif departure.target == me:
                yield f"the target of a tree {step}"
            elif me in departure.owners:
                yield f"an owner in a tree {step}"
            if other.core.here.directory_of(root) == machine.node:
                yield f"the directory node of a tree {step}"


CIRCUMSTANCES: Final = (
    "with requests under way",
    "mastering trees",
    "with names that the directory does not know",
    "with others waiting",
    "while a view spreads",
    "while another one is leaving",
    "while the directory is told",
    "while trees are without a master",
)
MOVES: Final = tuple(
    f"{who} a tree that is {step}"
    for who in ("the source of", "the target of", "an owner in", "the directory node of")
    for step in ("frozen", "handed over")
)
KINDS: Final = (
    "crash",
    "cut off",
    "mute",
    "deaf",
    "removed alive",
    "pause",
    "partition",
    "join",
    "grant after a gate",
)


def _copies(machine: "Machine") -> "Iterable[Copy]":
    return machine.core.mastery.copies.values()
