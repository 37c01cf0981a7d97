"""Nodes that die at any moment, under load: what was fsynced or seen stays, the others go on.

Randomized: the seed is in the test's name and in CLUSTERFS_SEED to repeat it. Each round lets every
node work, kills one, two or all daemons at a random moment, and checks the survivors; now and then
one node is read with the others dead, so that every byte comes from its own store.

The work of a node in a round: a journal of numbered records with random content, fsynced now and
then; small files written aside and renamed into place; lines appended to a log that all share.
"""

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clusterfs.cli import processes
from clusterfs.cli.dev import Cluster, Node

LEASE_S = 10.0  # a disk may stall for seconds, and a survivor without a lease gets errors
PATIENCE_S = 150.0  # survivors go on after a lease at most, but the machine may be busy
SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
SOAK_S = float(os.environ.get("CLUSTERFS_SOAK_MINUTES", "0")) * 60
ROUNDS = 20
SHARED = "shared-log"


class Worker(threading.Thread):
    """One node's load in one round, and what it may rely on afterwards."""

    def __init__(self, root: Path, number: int, name: str, stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.root = root
        self.number = number
        self.source = random.Random(name)
        self.stop = stop
        self.expected_death = False
        self.failure: BaseException | None = None
        self.journal = f"journal-{name}"
        self.records: list[tuple[int, bytes]] = []  # written: offset, content
        self.durable = 0  # so many records are fsynced
        self.finished: dict[str, bytes] = {}  # small files fsynced and renamed into place
        self.lines = 0  # appended and fsynced
        self.operations = 0

    def run(self) -> None:
        try:
            self._work()
        except OSError as failure:
            if not self.expected_death:
                self.failure = failure

    def _work(self) -> None:
        journal = os.open(self.root / self.journal, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o644)
        log = os.open(self.root / SHARED, os.O_WRONLY | os.O_APPEND)
        with _closing(journal, log):
            place = 0
            while not self.stop.is_set():
                place += self._step(journal, log, place)
                self.operations += 1

    def _step(self, journal: int, log: int, place: int) -> int:
        content = self.source.randbytes(self.source.choice([100, 4096, 5000, 65536]))
        self.records.append((place, content))
        assert os.pwrite(journal, content, place) == len(content)
        if self.source.random() < 0.2:
            os.fsync(journal)
            self.durable = len(self.records)
        if self.source.random() < 0.2:
            self._small_file()
        if self.source.random() < 0.3:
            os.write(log, f"{self.name} {self.lines}\n".encode())
            os.fsync(log)
            self.lines += 1
        return len(content)

    def _small_file(self) -> None:
        name = f"small-{self.name}-{len(self.finished)}"
        content = self.source.randbytes(self.source.randrange(20_000))
        aside = self.root / f"{name}.new"
        descriptor = os.open(aside, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(aside, self.root / name)
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.finished[name] = content


@contextlib.contextmanager
def _closing(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


class History:
    """What must be there for ever: seen by a survivor and fsynced since."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}  # name to SHA-256
        self.log = b""

    def check(self, root: Path) -> None:
        """Compare all of it with one node's view."""
        wrong = [name for name, digest in self.files.items() if _digest(root / name) != digest]
        assert wrong == [], f"{root}: changed or lost: {wrong}"
        seen = (root / SHARED).read_bytes()
        assert seen.startswith(self.log), f"{root}: the shared log lost what was there"

    def settle(self, root: Path, workers: list[Worker]) -> None:
        """Check what the workers rely on, then fsync it: from now on nothing may change it."""
        for worker in workers:
            _check_worker(root, worker)
        for name in sorted(os.listdir(root)):
            path = root / name
            descriptor = os.open(path, os.O_RDONLY)
            with _closing(descriptor):
                os.fsync(descriptor)
            if name != SHARED:
                self.files[name] = _digest(path)
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        with _closing(folder):
            os.fsync(folder)
        self.log = (root / SHARED).read_bytes()


def _check_worker(root: Path, worker: Worker) -> None:
    if worker.durable:
        content = (root / worker.journal).read_bytes()
        for index, (place, record) in enumerate(worker.records[: worker.durable]):
            found = content[place : place + len(record)]
            assert found == record, f"{worker.name}: fsynced record {index} at {place} is not there"
    for name, small in worker.finished.items():
        assert (root / name).read_bytes() == small, f"{name} is not what was fsynced and renamed"
    lines = (root / SHARED).read_bytes().split(b"\n")
    mine = [line for line in lines if line.startswith(worker.name.encode() + b" ")]
    expected = [f"{worker.name} {number}".encode() for number in range(len(mine))]
    assert mine == expected, f"{worker.name}: its lines are torn, doubled or out of order"
    assert len(mine) >= worker.lines, f"{worker.name}: {worker.lines} lines were fsynced"


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def kill_now(nodes: list[Node], *, with_supervisors: bool = False) -> None:
    """Kill daemons at this moment, all together; with their supervisors it is a host that died."""
    killed = [node.process for node in nodes]
    killed += [node.supervisor for node in nodes if with_supervisors]
    for process in killed:
        assert process is not None
        assert processes.send(process, signal.SIGKILL)
    for process in killed:
        assert process is not None
        assert processes.wait_gone(process, PATIENCE_S)


class Rounds:
    """The cluster under test, its history, and the seeded source of every decision."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.source = random.Random(seed)
        self.history = History()
        self.roots = {node.number: node.mount / "work" for node in cluster.nodes}
        self.roots[1].mkdir()
        (self.roots[1] / SHARED).touch()

    def play(self, number: int) -> None:
        """Work, kill, check the survivors, bring the dead back, check them."""
        victims = self.source.sample(self.cluster.nodes, self.source.choice([1, 1, 1, 1, 2, 3]))
        survivors = [node for node in self.cluster.nodes if node not in victims]
        workers = self._work_until_kill(number, victims)
        if survivors:
            self._go_on(survivors, workers, number)
        self.cluster.up()
        if not survivors:
            self.history.settle(self.roots[1], workers)
        for root in self.roots.values():
            self.history.check(root)

    def read_alone(self, node: Node) -> None:
        """Read everything on one node with the others dead: all of it is from its own store."""
        kill_now([other for other in self.cluster.nodes if other != node])
        self.history.check(self.roots[node.number])
        self.cluster.up()

    def _work_until_kill(self, number: int, victims: list[Node]) -> list[Worker]:
        stop = threading.Event()
        workers = [
            Worker(self.roots[node.number], node.number, f"{number}-{node.name}", stop)
            for node in self.cluster.nodes
        ]
        for worker in workers:
            worker.start()
        goal = self.source.randrange(1, 300)
        moment = self.source.random() * 0.05
        _await(lambda: sum(worker.operations for worker in workers) >= goal)
        time.sleep(moment)  # where in an operation it strikes; nothing waits for this
        dead = {victim.number for victim in victims}
        for worker in workers:
            worker.expected_death = worker.number in dead
        kill_now(victims, with_supervisors=self.source.random() < 0.5)
        before = {worker.name: worker.operations for worker in workers}
        alive = [worker for worker in workers if worker.number not in dead]
        _await(lambda: all(w.operations > before[w.name] + 5 for w in alive))
        stop.set()
        for worker in workers:
            worker.join(PATIENCE_S)
            assert not worker.is_alive(), f"{worker.name} hangs"
        failures = {worker.name: worker.failure for worker in alive if worker.failure}
        assert failures == {}, f"survivors got errors: {failures}"
        return workers

    def _go_on(self, survivors: list[Node], workers: list[Worker], number: int) -> None:
        """Every survivor can use what the dead had locked or mastered."""

        def use_what_the_dead_had(node: Node) -> None:
            root = self.roots[node.number]
            for name in [*(worker.journal for worker in workers), SHARED]:
                with contextlib.suppress(FileNotFoundError):
                    os.utime(root / name)
            (root / f"after-{number}-{node.name}").write_text("still here")

        with ThreadPoolExecutor(len(survivors)) as pool:
            list(pool.map(use_what_the_dead_had, survivors))
        first, *others = survivors
        self.history.check(self.roots[first.number])
        self.history.settle(self.roots[first.number], workers)
        for other in others:
            self.history.check(self.roots[other.number])


def _await(so) -> None:  # noqa: ANN001
    deadline_s = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < deadline_s, "no progress"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(settings={"lease_s": str(LEASE_S)})


@pytest.fixture(scope="module")
def rounds(cluster: Cluster) -> Rounds:
    return Rounds(cluster, SEED)


@pytest.mark.parametrize("number", range(ROUNDS), ids=lambda number: f"seed{SEED}-round{number}")
def test_a_killed_node_costs_nothing_that_was_fsynced_or_seen(rounds: Rounds, number: int) -> None:
    rounds.play(number)


@pytest.mark.parametrize("index", range(3), ids=["n1", "n2", "n3"])
def test_a_node_that_came_back_has_everything_in_its_own_store(rounds: Rounds, index: int) -> None:
    rounds.read_alone(rounds.cluster.nodes[index])


def test_for_as_long_as_asked(rounds: Rounds) -> None:
    end_s, number = time.monotonic() + SOAK_S, ROUNDS
    while time.monotonic() < end_s:
        rounds.play(number)
        rounds.read_alone(rounds.source.choice(rounds.cluster.nodes))
        number += 1
    rounds.history.check(rounds.roots[1])
