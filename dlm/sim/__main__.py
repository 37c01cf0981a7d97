"""`python -m dlm.sim --seed N --nodes K`: run one seed, or many; print the trace of a violation."""

import argparse
import random
import sys
import time
from collections.abc import Iterator

from dlm.sim.ranges import simulate_ranges
from dlm.sim.run import Outcome, short_life, simulate


def _seeds(first: int, count: int, minutes: float) -> Iterator[int]:
    """Yield `count` seeds, or random ones until the time is over."""
    if not minutes:
        yield from range(first, first + count)
    began_s, dice = time.perf_counter(), random.SystemRandom()
    while time.perf_counter() - began_s < 60 * minutes:
        yield dice.randrange(2**40)


def _live(seed: int, options: argparse.Namespace) -> Outcome:
    if options.short or options.storm:
        return short_life(seed, migrations=options.storm)
    return simulate(seed, options.nodes, until_s=options.seconds, transactions=options.transactions)


def _ranges(seed: int, nodes: int | None) -> str:
    """Return what broke, with all that led to it."""
    if simulate_ranges(seed, nodes).violation is None:
        return ""
    outcome = simulate_ranges(seed, nodes, tracing=True)
    return "\n".join((*outcome.trace, f"seed {seed}: {outcome.violation}", ""))


def main() -> int:
    """Return 0 if every seed held."""
    parser = argparse.ArgumentParser(prog="python -m dlm.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--minutes", type=float, default=0.0, help="new seeds for as long as that")
    parser.add_argument("--nodes", type=int, default=None, help="default: 3 to 7, by the seed")
    parser.add_argument("--seconds", type=float, default=2.0, help="simulated time with faults")
    parser.add_argument("--transactions", action="store_true", help="users of many locks at once")
    parser.add_argument("--short", action="store_true", help="short lives with faults of all kinds")
    parser.add_argument("--ranges", action="store_true", help="users of ranges, not of locks")
    parser.add_argument("--storm", action="store_true", help="the same, while trees move")
    options = parser.parse_args()
    for seed in _seeds(options.seed, options.seeds, options.minutes):
        if options.ranges:
            complaint = _ranges(seed, options.nodes)
            if complaint:
                sys.stdout.write(complaint)
                return 1
            continue
        outcome = _live(seed, options)
        if outcome.violation is not None:
            sys.stdout.write("\n".join(outcome.trace))
            sys.stdout.write(f"\nseed {seed}: {outcome.violation}\n")
            return 1
        sys.stdout.write(
            f"seed {seed}: {outcome.nodes} nodes, {outcome.events} events, "
            f"{outcome.completed} operations, {outcome.views} views, "
            f"{outcome.values_read} values checked, {outcome.deadlocks} deadlocks\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
