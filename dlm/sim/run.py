"""One seed from boot to rest: a hostile phase, a calm one, and the final reckoning."""

import random
import traceback
from collections import Counter
from typing import NamedTuple

import msgspec

from dlm.core.overtaking import OvertakingResource
from dlm.core.resource import Resource
from dlm.sim.faults import Faults, all_faults, some_faults
from dlm.sim.transactions import Transactions
from dlm.sim.workload import Workload
from dlm.sim.world import Machine, World

REST_S = 20.0  # far beyond anything that is still to happen in a calm world


class Outcome(msgspec.Struct, frozen=True):
    """What a run was, and what broke; the trace is empty unless something did."""

    nodes: int
    events: int
    completed: int
    views: int
    values_read: int
    deadlocks: int
    met: dict[str, int]  # how often each kind of fault happened, and in which circumstances
    violation: str | None
    trace: list[str]


def simulate(  # noqa: PLR0913  all but the seed is for tests of one thing
    seed: int,
    nodes: int | None = None,
    until_s: float = 2.0,
    faults: Faults | None = None,
    *,
    calm_s: float = 0.5,
    transactions: bool = False,
    rules: type[Resource] = Resource,
) -> Outcome:
    """Run the seed; all that goes wrong is in the outcome, with all that led to it.

    It is traced only when it has failed, in a second run. `calm_s` follows without faults. With
    `transactions` the users take many locks at once, and get into deadlocks. Other `rules` than
    those of fs/dlm need that: single users would wait for ever in a conversion deadlock.
    """
    settings = _Settings(seed, nodes, until_s, calm_s, faults, transactions, rules)
    outcome = _run(settings, tracing=False)
    return outcome if outcome.violation is None else _run(settings, tracing=True)


def short_life(seed: int, *, migrations: bool = False) -> Outcome:
    """Run a short life of 3 to 9 nodes with faults of every kind; what the users do is by the seed.

    Most seeds have users of one lock, every tenth those that get into deadlocks, half of them by
    the rules of o2dlm. With `migrations` trees move all the time.
    """
    faults, nodes, calm_s = all_faults(seed), 3 + seed % 7, 0.05
    if migrations:
        often_s = random.Random(~seed).choice((0.0005, 0.002, 0.01))
        faults = msgspec.structs.replace(faults, migration_interval_s=often_s)
    if seed % 10:
        return simulate(seed, nodes, 0.15, faults, calm_s=calm_s)
    rules = OvertakingResource if seed % 20 else Resource
    return simulate(seed, nodes, 0.1, faults, calm_s=calm_s, transactions=True, rules=rules)


class _Settings(NamedTuple):
    seed: int
    nodes: int | None
    until_s: float
    calm_s: float
    faults: Faults | None
    transactions: bool
    rules: type[Resource]


def _run(settings: _Settings, *, tracing: bool) -> Outcome:
    seed, nodes, until_s, calm_s, faults, transactions, rules = settings
    dice = random.Random(seed ^ 0x5EED)
    nodes = nodes or dice.randint(3, 7)
    world = World(seed, nodes, faults or some_faults(dice), tracing=tracing)
    load = (Transactions if transactions else Workload)(world, users_per_node=dice.randint(1, 4))
    populate = load.populate

    def start(machine: Machine) -> None:
        machine.core.here.rules = rules
        populate(machine)

    world.started = start
    violation: str | None = None
    try:
        world.boot()
        world.run(until_s)
        world.quiet = True
        world.run(until_s + calm_s)
        load.closing = True
        world.run(until_s + REST_S)
        world.checker.at_rest(list(world.machines.values()))
    except (AssertionError, LookupError, ValueError, TypeError, AttributeError):
        violation = traceback.format_exc()
    return Outcome(
        nodes,
        world.events_run,
        load.completed,
        world.epoch,
        world.checker.values.read,
        world.checker.waits.found,
        dict(world.met + Counter({"grant after a gate": world.checker.estates.waited})),
        violation,
        list(world.trace) if violation else [],
    )
