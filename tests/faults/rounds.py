"""One round: clients on all nodes work on shared files while faults are played; then a check.

What is checked of each file's history is in clusterfs/sim: linearizability, nothing synced lost.
The last operations of a history are those of a reader on each node after all is healed. Besides,
errors: a program may see EIO only on a node that was lost, "not connected" only where the daemon
was killed, "no space" only where a brick was filled.
"""

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clusterfs.sim import file_models, histories
from clusterfs.sim.histories import Record
from clusterfs.sim.linearizability import Operation, State, Step, Verdict, check
from tests.faults import evidence
from tests.faults.client import BLOCKS, FOLDERS, RANGES, block
from tests.faults.cluster import PATIENCE_S, HostCluster, wait
from tests.faults.hosts import DIES_WITH_US
from tests.faults.schedule import ENDING_DAEMONS, Fault, Player, draw

SEED = os.environ.get("CLUSTERFS_SEED", "0")
MINUTES = float(os.environ.get("CLUSTERFS_FAULT_MINUTES", "10"))
ONLY = os.environ.get("CLUSTERFS_FAULT_ROUND")
CLIENTS_PER_NODE = 2
SLOTS = 4  # of a round: one fault each, or two that overlap
SEARCHED = 200_000  # configurations; a minute or so
PACE_S = 0.05  # mean rest of a client between operations
_KILLED_S = 10.0  # until a process that was killed is gone, unless it is in a system call
_CLIENT = Path(__file__).with_name("client.py")
_DEAD_MOUNT = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV)


class Checked(NamedTuple):
    """A history, and of what."""

    operations: list[Operation]
    initial: State
    step: Step


class Client:
    """A process of client.py."""

    def __init__(
        self, cluster: HostCluster, node: int, number: int, folder: str, pace_s: float
    ) -> None:
        self.node, self.number = node, number
        self.output = cluster.folder / f"{folder}-client{number}"
        mount = str(cluster.node(node).mount)
        seed = f"{folder}-{number}"
        arguments = [mount, folder, str(self.output), str(number), seed, str(pace_s)]
        self._process = subprocess.Popen(
            [*DIES_WITH_US, sys.executable, str(_CLIENT), *arguments], stdin=subprocess.PIPE
        )

    def tell_to_stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

    def end(self, timeout_s: float) -> bool:
        """Tell it to stop, and wait for its end; False if it hangs, it is killed then."""
        self.tell_to_stop()
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILLED_S)  # longer if the kernel holds it: in a hung mount
            return False
        assert code == 0, f"client {self.number} failed: {code}"
        return True

    def oddities(self) -> Iterator[str]:
        """Yield what was read of the log that is not whole records."""
        with contextlib.suppress(FileNotFoundError):
            for line in map(json.loads, self.output.read_text().splitlines()):
                if "odd" in line:
                    yield f"n{self.node} client {self.number} at {line['at']}: {line['odd']}"

    def done(self) -> int:
        """Return how many operations are over."""
        return sum(record.returned is not None for record in self.records())

    def records(self) -> Iterator[Record]:
        with contextlib.suppress(FileNotFoundError):
            lines = self.output.read_text().splitlines()
            yield from histories.parsed(map(json.loads, lines), self.node, self.number)


class Rounds:
    """Rounds on one cluster, one after the other."""

    def __init__(self, cluster: HostCluster, *, keeps: bool = False) -> None:
        """`keeps`: what a failing round was is written to files."""
        self.cluster = cluster
        self._keeps = keeps
        self.operations = 0
        self.kinds: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.undecided = 0
        self.apart = 0  # histories of names of which only each name alone could be checked
        self.checked = 0

    def play(
        self,
        seed: str,
        *,
        schedule: Sequence[list[Fault]] | None = None,
        on: Collection[int] = (),
        again: int = 0,
        busy: int = 0,
    ) -> list[str]:
        """Play one round; returns what is wrong.

        Args:
            seed: what to draw faults, and what clients do, from; and the round's name.
            schedule: faults to play instead; those of an item overlap.
            on: the nodes that have clients; none: all.
            again: so many times the round was played here before.
            busy: the first fault waits until each client has done so many operations.
        """
        folder = f"round-{seed}" + (f"-{again}" if again else "")
        self._prepare(folder)
        clients = [
            Client(self.cluster, node.number, node.number * 10 + n, folder, PACE_S)
            for node in self.cluster.nodes
            for n in range(CLIENTS_PER_NODE)
            if not on or node.number in on
        ]
        try:
            wait(lambda: all(client.done() >= busy for client in clients), "all clients are busy")
            played = self._play_faults(seed, schedule or self._drawn(seed))
            self.cluster.wait_synced()
        finally:
            for client in clients:
                client.tell_to_stop()
            hang = [client.number for client in clients if not client.end(PATIENCE_S)]
        wrong = [f"clients {hang} hang; {self.cluster.explain()}"] if hang else []
        clients += self._look_at_all(folder)
        records = [record for client in clients for record in client.records()]
        self.operations += len(records)
        wrong += self._unexpected(records) + self._violations(records)
        if wrong:
            wrong += [odd for client in clients for odd in client.oddities()][:20]
            wrong.append("played: " + "; ".join(played))
            if self._keeps:
                logs = [node.log for node in self.cluster.nodes]
                wrong.append(f"all of it: {evidence.keep(folder, records, wrong, logs)}")
        return wrong

    def _prepare(self, folder: str) -> None:
        root = self.cluster.nodes[0].mount / folder
        root.mkdir()
        for name in FOLDERS:
            (root / name).mkdir()
        for name, content in {
            **{name: block(name, 0) for name in BLOCKS},
            "log": b"",
            "locks": b"",
        }.items():
            with (root / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    def _drawn(self, seed: str) -> list[list[Fault]]:
        hosts, lease_s = len(self.cluster.nodes), self.cluster.lease_s
        return [draw(f"{seed}-{slot}", hosts, lease_s) for slot in range(SLOTS)]

    def _play_faults(self, seed: str, schedule: Sequence[list[Fault]]) -> list[str]:
        source, player, played = random.Random(f"{seed}-rests"), Player(self.cluster), []
        for faults in schedule:
            time.sleep(source.uniform(0.2, 1.2))  # work in peace
            played += [str(fault) for fault in faults]
            self.kinds.update(fault.kind for fault in faults)
            if any(fault.kind in ENDING_DAEMONS for fault in faults):
                # The only replica in sync may lose what was not synced: nothing could be concluded.
                self.cluster.wait_synced()
            player.play(faults)
        return played

    def _look_at_all(self, folder: str) -> list[Client]:
        """Let a reader on each node look at everything, one after the other."""
        readers = []
        for node in self.cluster.nodes:
            reader = Client(self.cluster, node.number, 900 + node.number, folder, 0)
            assert reader.end(PATIENCE_S), f"the last reader on {node.name} hangs"
            readers.append(reader)
        return readers

    # --- judging

    def _unexpected(self, records: list[Record]) -> list[str]:
        lost = {node for node, _ in self.cluster.losses()}
        killed = {node for node, _ in self.cluster.killed}
        found = []
        for record in records:
            if record.error is None:
                continue
            name = errno.errorcode.get(record.error, str(record.error))
            self.errors[f"{record.action[0]}: {name}"] += 1
            allowed = (
                (record.error in _DEAD_MOUNT and record.node in killed)
                or (record.error in (errno.EIO, errno.ESTALE) and record.node in lost)
                or (record.error == errno.ENOSPC and self.kinds["fill"])
                or (record.error == errno.ENOENT and record.node in killed)  # of the mount point
            )
            if not allowed:
                found.append(f"n{record.node}: {record.action} failed with {name}")
        return found

    def _violations(self, records: list[Record]) -> list[str]:
        losses: dict[int, list[int]] = {}
        for node, at in self.cluster.losses():
            losses.setdefault(node, []).append(at)
        dark = self.cluster.blackouts()
        of = {
            thing: [record for record in records if record.thing == thing]
            for thing in (*BLOCKS, *RANGES, "log", "tree")
        }
        found = {
            name: Checked(histories.of_data(of[name], losses, dark), 0, file_models.register)
            for name in BLOCKS
        }
        found["log"] = Checked(histories.of_data(of["log"], losses, dark), (), file_models.log)
        for name in RANGES:
            found[name] = Checked(
                histories.of_locks(of[name], losses, records), file_models.FREE, file_models.mutex
            )
        verdicts = {name: check(*checked, limit=SEARCHED) for name, checked in found.items()}
        tree = histories.of_names(of["tree"], losses, dark)
        found["tree"] = Checked(tree, file_models.EMPTY_TREE, file_models.tree)
        names = histories.check_names(tree, SEARCHED)
        verdicts["tree"] = names.verdict
        self.apart += names.apart
        self.checked += len(verdicts)
        hard = [thing for thing, verdict in verdicts.items() if verdict.linearizable is None]
        self.undecided += len(hard)
        if hard:
            print(f"too hard to check: {hard} of {len(records)} operations")
        bad = [thing for thing, verdict in verdicts.items() if verdict.linearizable is False]
        cores = [line for thing in bad for line in _core(thing, found[thing])]
        return cores + [_told(thing, verdicts[thing], of[thing], losses) for thing in bad]


def play_for_minutes(cluster: HostCluster, minutes: float) -> None:
    """Play round after round; each is to find nothing."""
    rounds = Rounds(cluster, keeps=True)
    end_s = time.monotonic() + minutes * 60
    number = 0
    while time.monotonic() < end_s:
        name = ONLY or f"{SEED}-{len(cluster.nodes)}-{number}"
        wrong = rounds.play(name, again=number if ONLY else 0)
        assert not wrong, "\n".join([f"round {name}", *wrong])
        number += 1
    print(f"{number} rounds, {rounds.operations} operations, faults: {dict(rounds.kinds)}")
    print(
        f"{rounds.checked} histories, {rounds.undecided} too hard to check, "
        f"{rounds.apart} of names checked name by name"
    )
    print(f"errors that programs saw: {dict(rounds.errors)}")
    assert number
    assert rounds.operations > 100, "hardly anything was done"
    assert rounds.undecided <= rounds.checked / 4, "too many histories are too hard to check"


def _core(thing: str, checked: Checked) -> list[str]:
    """Say first, and in a few lines, what cannot be: logs are cut."""
    core = evidence.core(*checked)
    return evidence.told(thing, core) if core else []


def _told(thing: str, verdict: Verdict, records: list[Record], losses: dict[int, list[int]]) -> str:
    """Say where a history stops making sense."""
    stuck = verdict.stuck
    start = min((operation.invoked for operation in stuck), default=0)
    lines = [f"{thing}: not linearizable; {len(verdict.explained)} operations can be explained"]
    lines += [
        "the last of these: " + _line(operation, start) for operation in verdict.explained[-8:]
    ]
    lines += ["cannot be next: " + _line(operation, start) for operation in stuck[:12]]
    near = [
        r for r in records if (r.returned or r.invoked) > start - 4e9 and r.invoked < start + 2e9
    ]
    for r in sorted(near, key=lambda record: record.invoked)[:60]:
        took = "?" if r.returned is None else f"{(r.returned - start) / 1e9:.4f}"
        lines.append(
            f"  n{r.node} client {r.client} {(r.invoked - start) / 1e9:.4f}-{took} "
            f"{r.action} -> {r.result} {r.error or ''} handle {r.handle}"
        )
    lines.append(
        f"losses: { {n: [round((t - start) / 1e9, 3) for t in at] for n, at in losses.items()} }"
    )
    return "\n".join(lines)


def _line(operation: Operation, start: int) -> str:
    end = "?" if operation.returned is None else f"{(operation.returned - start) / 1e9:.4f}"
    return f"{(operation.invoked - start) / 1e9:.4f}-{end} {operation.action} -> {operation.result}"
