"""What breaks when: drawn from a seed, then played; the same seed draws the same faults."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clusterfs.cli import processes
from tests.faults.cluster import HostCluster

LEASES = (0.15, 0.4, 1.3, 2.0)  # how long a fault lasts: two within a lease, two beyond
# Nodes that reach etcd and not each other have one of them removed after 10 s.
APART_LEASES = (0.4, 2.0, 6.0, 8.0)


class Fault(NamedTuple):
    kind: str
    host: int
    other: int  # of pairs, and the second of two
    begins_s: float
    lasts_s: float

    def __str__(self) -> str:
        return (
            f"{self.kind} h{self.host}/h{self.other} +{self.begins_s:.2f}s for {self.lasts_s:.2f}s"
        )


KINDS = {
    "cut": 3,
    "cut_out": 1.5,
    "cut_into": 1.5,
    "cut_pair": 2,
    "flap": 1,
    "pause": 3,
    "kill": 2,
    "kill_host": 2,
    "etcd_stop": 1.5,
    "etcd_pause": 1,
    "etcd_stop_two": 1,
    "fill": 0.7,
}
PARTINGS = ("part", "part_pair")  # only the nodes' own connections are cut
if "CLUSTERFS_FAULT_MINUTES" in os.environ:  # they take long: only if somebody asked for long
    KINDS |= dict.fromkeys(PARTINGS, 1)
ENDING_DAEMONS = ("kill", "kill_host")


def draw(seed: str, hosts: int, lease_s: float) -> list[Fault]:
    """Draw the faults of one slot: one, or two that overlap; a daemon is killed with no other.

    (Where others are cut off the killed one may have been the only replica in sync, and then what
    was not synced is lost by right: nothing could be concluded.)
    """
    source = random.Random(seed)
    found: list[Fault] = []
    for _ in range(source.choice([1, 1, 2])):
        kind = source.choices(list(KINDS), list(KINDS.values()))[0]
        host, other = source.sample(range(1, hosts + 1), 2)
        leases = APART_LEASES if kind in PARTINGS else LEASES
        lasts_s = lease_s * source.choice(leases) * source.uniform(0.9, 1.2)
        fault = Fault(kind, host, other, source.uniform(0, 0.7), lasts_s)
        if not any(_clash(fault, one) for one in found):
            found.append(fault)
    return found


def _clash(one: Fault, other: Fault) -> bool:
    kinds = {one.kind, other.kind}
    return (
        not kinds.isdisjoint(ENDING_DAEMONS)
        or all(kind.startswith("etcd") for kind in kinds)
        or (kinds == {"pause"} and one.host == other.host)
        or kinds == {"fill"}
    )


class Player:
    """Plays faults on a cluster; every one is healed when `play` returns."""

    def __init__(self, cluster: HostCluster) -> None:
        self._cluster = cluster
        self._cuts: dict[Fault, set[tuple[int, int]]] = {}

    def play(self, faults: list[Fault]) -> None:
        moments: list[tuple[float, int, Callable[[], None]]] = []
        for number, fault in enumerate(faults):
            for at_s, deed in self._deeds(fault):
                moments.append((fault.begins_s + at_s, number, deed))
        started_s = time.monotonic()
        try:
            for at_s, _, deed in sorted(moments, key=lambda moment: moment[:2]):
                time.sleep(max(0.0, started_s + at_s - time.monotonic()))
                deed()
        finally:
            self._heal(faults)

    def _deeds(self, fault: Fault) -> list[tuple[float, Callable[[], None]]]:
        """Return what is to be done, with seconds from the fault's beginning."""
        begin: Callable[[Fault], None] = getattr(self, f"_{fault.kind}", self._cut)
        if fault.kind != "flap":
            return [(0.0, lambda: begin(fault)), (fault.lasts_s, lambda: self._end(fault))]
        flaps = []
        for n in range(4):
            flaps.append((n * 0.5, lambda: self._cut(fault)))
            flaps.append((n * 0.5 + 0.3, lambda: self._end(fault)))
        return flaps

    def _cut(self, fault: Fault) -> None:
        network = self._cluster.network
        if fault.kind.endswith("_pair"):
            pairs = {(fault.host, fault.other), (fault.other, fault.host)}
        else:
            pairs = network.around(
                fault.host, out=fault.kind != "cut_into", into=fault.kind != "cut_out"
            )
        self._cuts[fault] = pairs
        self._set_cuts()

    def _set_cuts(self) -> None:
        whole: set[tuple[int, int]] = set()
        nodes: set[tuple[int, int]] = set()
        for fault, pairs in self._cuts.items():
            (nodes if fault.kind in PARTINGS else whole).update(pairs)
        self._cluster.network.set_cut(whole, between_nodes=nodes)

    def _rest(self, _fault: Fault) -> None:
        """Nothing breaks."""

    def _pause(self, fault: Fault) -> None:
        self._cluster.signal(fault.host, signal.SIGSTOP)

    def _kill(self, fault: Fault) -> None:
        self._cluster.kill(fault.host)

    def _kill_host(self, fault: Fault) -> None:
        self._cluster.kill(fault.host, host=True)

    def _etcd_stop(self, fault: Fault) -> None:
        self._cluster.etcd.stop(_member(fault.host))

    def _etcd_pause(self, fault: Fault) -> None:
        self._cluster.etcd.signal(_member(fault.host), signal.SIGSTOP)

    def _etcd_stop_two(self, fault: Fault) -> None:
        for n in (1, 2, 3):
            if n != _member(fault.host):
                self._cluster.etcd.stop(n)

    def _fill(self, _fault: Fault) -> None:
        brick = self._cluster.small_brick
        if brick is not None:
            with contextlib.suppress(OSError), (brick / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))

    def _end(self, fault: Fault) -> None:
        """End it as far as that needs nobody else; killed daemons start when all is healed."""
        if fault in self._cuts:
            del self._cuts[fault]
            self._set_cuts()
        if fault.kind == "pause":
            process = self._cluster.node(fault.host).process
            if process:
                processes.send(process, signal.SIGCONT)
        if fault.kind.startswith("etcd"):
            self._cluster.etcd.heal()
        if fault.kind == "fill" and self._cluster.small_brick:
            _remove(self._cluster.small_brick / "filler")

    def _heal(self, faults: list[Fault]) -> None:
        self._cuts.clear()
        for fault in faults:
            self._end(fault)
        self._cluster.network.set_cut(())
        if any(fault.kind in ENDING_DAEMONS for fault in faults):
            self._cluster.restart_dead()


def _member(host: int) -> int:
    return (host - 1) % 3 + 1


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
