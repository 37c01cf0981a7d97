"""`python -m bench dlm`: the lock manager's table beside fs/dlm, o2dlm and etcd, all in one run.

Rounds are interleaved, so a busy moment of the machine hits all rows; the table has the medians of
the rounds. Writes bench/dlm.json and prints Markdown; with --json prints the JSON instead.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bench.dlm import etcd, messages, migration, recovery, sockets
from bench.micro import lock_transition

RESULTS = Path(__file__).parents[1] / "dlm.json"
TRANSITION_US = 5.0
TIMES_FASTER = 10.0
RECOVERY_S = 2.0
FROZEN_S = 0.5
REMOTE, ETCD = "remote master", "etcd, disk"


def main(words: list[str]) -> int:
    """Measure, print, record; return 1 if a budget is missed and --check was given."""
    parser = argparse.ArgumentParser(prog="bench dlm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row in each round")
    parser.add_argument("--locks", type=int, default=recovery.LOCKS, help="to be recovered")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="fail if a budget is missed")
    parser.add_argument("--no-etcd", action="store_true", help="leave etcd out")
    arguments = parser.parse_args(words)
    result = measure(
        arguments.rounds,
        arguments.seconds,
        with_etcd=not arguments.no_etcd,
        locks=arguments.locks,
    )
    encoded = json.dumps(result, indent=2)
    arguments.output.write_text(encoded + "\n")
    print(encoded if arguments.json else markdown(result))
    missed = [name for name, budget in result["budgets"].items() if not budget["met"]]
    return int(arguments.check and bool(missed))


def measure(
    rounds: int, seconds: float, *, with_etcd: bool = True, locks: int = recovery.LOCKS
) -> dict[str, Any]:
    """Return everything, as JSON."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring locks", total=3 * rounds + 3)
        costs = messages.measure()
        progress.advance(task)
        recovered = recovery.measure(locks)
        progress.advance(task)
        moved = migration.measure(max(locks // 10, 3))
        progress.advance(task)
        for _ in range(rounds):
            parts = [_transitions]
            parts.append(lambda: _sockets(seconds))
            parts += [lambda: etcd.measure(seconds)] if with_etcd else []
            for part in parts:
                for row, numbers in part().items():
                    for name, value in numbers.items():
                        samples[row][name].append(value)
                progress.advance(task)
    rows = {
        row: {name: statistics.median(values) for name, values in found.items()}
        for row, found in samples.items()
    }
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
        },
        "rounds": rounds,
        "messages": [cost._asdict() for cost in costs],
        "rows": rows,
        "recovery": recovered,
        "migration": moved,
        "budgets": budgets(rows, costs, recovered, moved),
    }


def budgets(
    rows: dict[str, dict[str, float]],
    costs: list[messages.Cost],
    recovered: dict[str, Any],
    moved: dict[str, Any],
) -> dict[str, Any]:
    """Return what was promised, what is so, and whether that is enough."""
    slowest = max(numbers["us"] for row, numbers in rows.items() if row.startswith("transition"))
    [storm] = [cost for cost in costs if cost.operation.startswith("Create ")]
    waited = rows["create storm"]["waited_for"] + storm.round_trips
    found: dict[str, Any] = {
        "core transition, us": {"is": slowest, "at most": TRANSITION_US},
        "create storm, messages on the path": {"is": waited, "at most": 0.0},
        f"recovery of {recovered['locks']:,} locks, s": {
            "is": recovered["settled_s"],
            "at most": RECOVERY_S,
        },
        f"tree of {moved['locks']:,} locks frozen while it moves, s": {
            "is": moved["frozen_s"],
            "at most": FROZEN_S,
        },
    }
    if ETCD in rows:
        faster = rows[ETCD]["pair_p50_us"] / rows[REMOTE]["pair_p50_us"]
        found["remote lock and unlock, times faster than etcd's"] = {
            "is": faster,
            "at least": TIMES_FASTER,
        }
    for budget in found.values():
        budget["met"] = budget["is"] <= budget.get("at most", float("inf")) and budget[
            "is"
        ] >= budget.get("at least", 0.0)
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of docs/performance.md."""
    lines = ["| operation | clusterfs | fs/dlm | o2dlm |", "|---|---:|---:|---:|"]
    lines += [
        f"| {cost['operation']} | {cost['messages']:g} / {cost['round_trips']:g} "
        f"| {cost['fsdlm']} | {cost['o2dlm']} |"
        for cost in result["messages"]
    ]
    lines += ["", "| row | lock p50, us | p99, us | lock + unlock p50, us | pairs/s |"]
    lines += ["|---|---:|---:|---:|---:|"]
    lines += [_row(row, numbers) for row, numbers in result["rows"].items()]
    lines += ["", "| recovery of locks | settled, s | a lost lock again, s | CPU, s |"]
    lines[-1] += " unrelated lock at worst, ms |"
    lines += ["|---|---:|---:|---:|---:|", _recovery(result["recovery"])]
    lines += ["", "| moving a tree of locks, worst of moves | frozen, s | CPU of all nodes, s |"]
    lines[-1] += " a lock in it, ms | unrelated lock at worst, ms | messages |"
    lines += ["|---|---:|---:|---:|---:|---:|", _migration(result["migration"])]
    lines += ["", "| budget | is | limit | met |", "|---|---:|---:|---|"]
    lines += [
        f"| {name} | {budget['is']:.3g} | {_limit(budget)} | {'yes' if budget['met'] else 'no'} |"
        for name, budget in result["budgets"].items()
    ]
    return "\n".join(lines)


def _migration(moved: dict[str, Any]) -> str:
    return (
        f"| {moved['locks']:,}, {moved['moves']} moves | {moved['frozen_s']:.3f} "
        f"| {moved['cpu_s']:.2f} | {moved['lock_ms']:.1f} | {moved['unrelated_worst_ms']:.1f} "
        f"| {moved['messages']:g} |"
    )


def _limit(budget: dict[str, float]) -> str:
    return f">= {budget['at least']:g}" if "at least" in budget else f"<= {budget['at most']:g}"


def _row(row: str, numbers: dict[str, float]) -> str:
    p50 = numbers.get("p50_us", numbers.get("us", numbers.get("found_us")))
    cells = [p50, numbers.get("p99_us"), numbers.get("pair_p50_us"), numbers.get("per_s")]
    return f"| {row} | " + " | ".join("-" if c is None else f"{c:,.1f}" for c in cells) + " |"


def _recovery(found: dict[str, Any]) -> str:
    cpu_s = max(node["cpu_s"] for node in found["nodes"])
    cells = (found["settled_s"], found["lost_s"], cpu_s, found["unrelated_worst_ms"])
    return f"| {found['locks']:,} | " + " | ".join(f"{cell:,.2f}" for cell in cells) + " |"


def _transitions() -> dict[str, dict[str, float]]:
    measures = (
        lock_transition.local_lock_and_unlock,
        lock_transition.remote_lock_and_unlock,
        lock_transition.convert_down_and_up,
    )
    rows = {}
    for measured in measures:
        us = measured()
        name = measured.__name__.replace("_", " ")
        rows[f"transition: {name}"] = {"us": us, "per_s": 1e6 / us}
    return rows


def _sockets(seconds: float) -> dict[str, dict[str, float]]:
    with sockets.running() as nodes:
        return sockets.measure(nodes, seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
