"""Locks over real sockets: five processes on this machine, each a node, driven by this one."""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from clusterfs.fs.lock_cache import LockCache
from dlm.core.situation import Situation

NODES = 5
TASKS = 64
STORM = 5000
CYCLES = (2, 3, 5)
CONTENDERS = (2, 3, 4)
Samples = dict[str, dict[str, Any]]  # row -> numbers


class Nodes:
    """The processes."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes
        self._directory = Situation(1, 1)
        self._directory.members = dict.fromkeys(range(1, len(processes) + 1), 1)
        self._names = 0
        ports = {}
        for node, process in enumerate(processes, 1):
            assert process.stdout is not None
            ports[node] = int(process.stdout.readline())
        for process in processes:
            _say(process, ports)

    def do(self, node: int, command: str, **arguments: Any) -> Any:
        """Let one node do it; return the result."""
        [result] = self.together([node], command, **arguments)
        return result

    def together(self, nodes: list[int], command: str, **arguments: Any) -> list[Any]:
        """Let several do it at the same time; a callable argument is called with the turn."""
        for turn, node in enumerate(nodes):
            told = {key: value(turn) if callable(value) else value for key, value in
                    arguments.items()}  # fmt: skip
            _say(self._processes[node - 1], {"do": command, **told})
        return [self._hear(node)[1] for node in nodes]

    def start(self, nodes: list[int], command: str, **arguments: Any) -> None:
        """Let several begin something; `ended` waits for it."""
        for node in nodes:
            _say(self._processes[node - 1], {"do": command, **arguments})

    def ended(self, node: int) -> tuple[str, Any]:
        """Return what this node has done next, and the result."""
        name, result = self._hear(node)
        return name, result

    def kill(self, node: int) -> None:
        """End one at once, as a crash does."""
        self._processes[node - 1].kill()
        self._processes[node - 1].wait()

    def name(self, directory: int) -> str:
        """Return a root not used before, whose directory node is this one."""
        while True:
            self._names += 1
            root = f"bench {self._names}"
            if self._directory.directory_of(root.encode()) == directory:
                return root

    def _hear(self, node: int) -> list[Any]:
        process = self._processes[node - 1]
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"node {node} ended"
        said: list[Any] = json.loads(line)
        return said


def _say(process: subprocess.Popen[str], value: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(value) + "\n")
    process.stdin.flush()


@contextlib.contextmanager
def running(count: int = NODES) -> Iterator[Nodes]:
    """Start the processes, end them."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.dlm.node", str(node)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for node in range(1, count + 1)
    ]
    try:
        yield Nodes(processes)
    finally:
        for process in processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def measure(nodes: Nodes, seconds: float) -> Samples:
    """Return every row once."""
    rows: Samples = {"cached": cached()}
    mine, theirs, other = nodes.name(3), nodes.name(3), nodes.name(3)
    nodes.do(1, "keep", root=mine)
    nodes.do(2, "keep", root=theirs)
    nodes.do(2, "keep", root=other)
    nodes.do(1, "keep", root=other)
    for row, root in (("local master", mine), ("remote master", other)):
        times = nodes.do(1, "one", root=root, seconds=seconds)
        rate = nodes.do(1, "many", root=root, seconds=seconds, tasks=TASKS)
        rows[row] = latency(times) | {"per_s": rate, "tasks": TASKS}
    rows["remote master, found anew"] = latency(nodes.do(1, "one", root=theirs, seconds=seconds))
    for count in CONTENDERS:
        root = nodes.name(5)
        nodes.do(5, "keep", root=root)
        found = nodes.together(list(range(1, count + 1)), "one", root=root, seconds=seconds)
        times = [pair for of_one in found for pair in of_one]
        rows[f"contended by {count} nodes"] = latency(times) | {"per_s": len(times) / seconds}
    rows["create storm"] = nodes.do(1, "storm", prefix=nodes.name(2), count=STORM)
    for count in CYCLES:
        rows[f"deadlock of {count}"] = _cycle(nodes, count)
    return rows


def _cycle(nodes: Nodes, count: int) -> dict[str, Any]:
    """Let nodes hold a name each, then want the next one's."""
    members, prefix = list(range(1, count + 1)), nodes.name(1)
    nodes.together(members, "hold", name=lambda turn: f"{prefix}.{turn}")
    found = nodes.together(members, "want", name=lambda turn: f"{prefix}.{(turn + 1) % count}")
    victims = [result["us"] for result in found if result["victim"]]
    return {"found_us": min(victims, default=float("nan")), "victims": len(victims)}


def latency(times_us: list[tuple[float, float]]) -> dict[str, float]:
    """Return the median and 99th percentile of locks, the median of locks with their unlocks."""
    ordered = sorted(lock_us for lock_us, _ in times_us)
    return {
        "p50_us": statistics.median(ordered),
        "p99_us": ordered[int(len(ordered) * 0.99)],
        "pair_p50_us": statistics.median(pair_us for _, pair_us in times_us),
        "samples": len(ordered),
    }


def cached(rounds: int = 200_000) -> dict[str, float]:
    """Measure using a lock that this node keeps, as an operation of the filesystem does."""
    from clusterfs.fs.locks import EX, CachedLock  # noqa: PLC0415
    from dlm.node import Name  # noqa: PLC0415

    cache = LockCache(None)  # type: ignore[arg-type]  # never asked
    lock = cache.lock(Name(b"inode"))
    assert isinstance(lock, CachedLock)
    lock.level = lock._ready = EX  # noqa: SLF001  as after a grant
    start_s = time.perf_counter()
    for _ in range(rounds):
        lock.exclusive_nowait()
        lock.release()
    each_us = (time.perf_counter() - start_s) / rounds * 1e6
    return {"p50_us": each_us, "per_s": 1e6 / each_us}
