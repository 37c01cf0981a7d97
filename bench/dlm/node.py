"""One node of the measurement: a process with a mesh and a lockspace, told what to do on stdin.

Every line in and out is a JSON value: first the port out and the peers in, then commands
{"do": NAME, ...}, which may overlap, and [NAME, result] when each is done. Latencies are in
microseconds.
"""

import gc
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
import trio

from dlm.errors import DeadlockVictim
from dlm.net import Answer, Mesh, Peer
from dlm.node import Lock, Lockspace, Mode, Name, Owner

CHANNEL = 1
PAGE = 500
_COLLECTED_AFTER = (5_000, 3, 1_500)  # as the daemon does
_ONE_AT_A_TIME = trio.CapacityLimiter(1)


class Locks:
    """The mesh's handler: passes messages to the lockspace."""

    def __init__(self) -> None:
        self.space: Lockspace | None = None

    def message(self, sender: int, _: int, __: int, body: bytes, ___: bytes) -> None:
        """Deliver."""
        assert self.space is not None
        self.space.deliver(sender, body)

    def begin_call(self, *_: object) -> Answer:
        """Nobody calls."""
        raise NotImplementedError


class Worker:
    """The commands."""

    def __init__(self, me: int, space: Lockspace, mesh: Mesh, peers: Sequence[Peer]) -> None:
        self._me = me
        self._space = space
        self._mesh = mesh
        self._peers = peers
        self._kept: list[Lock] = []
        self._stopping = False
        self._owner: Owner
        self._first: Lock
        self.commands: dict[str, Callable[..., Awaitable[Any]]] = {
            "keep": self.keep,
            "one": self.one,
            "many": self.many,
            "storm": self.storm,
            "hold": self.hold,
            "want": self.want,
            "messages": self.messages,
            "cpu": self.cpu,
            "make": self.make,
            "share": self.share,
            "enter": self.enter,
            "recover": self.recover,
            "fill": self.fill,
            "migrate": self.migrate,
            "contend": self.contend,
            "stop": self.stop,
        }

    async def keep(self, root: str) -> None:
        """Hold NL on a root, so that whoever masters it goes on with that."""
        self._kept.append(await self._space.lock(Name(root.encode(), b"keep"), Mode.NL))

    async def one(self, root: str, seconds: float) -> list[tuple[float, float]]:
        """Lock and unlock one name, again and again; return the times of each lock and pair."""
        space, name = self._space, Name(root.encode(), b"x")
        times, end_s = [], time.perf_counter() + seconds
        while (start_s := time.perf_counter()) < end_s:
            lock = await space.lock(name, Mode.EX)
            locked_s = time.perf_counter()
            space.unlock_nowait(lock)
            unlocked_s = time.perf_counter()
            times.append(((locked_s - start_s) * 1e6, (unlocked_s - start_s) * 1e6))
            await trio.lowlevel.checkpoint()
        return times

    async def many(self, root: str, seconds: float, tasks: int) -> float:
        """Lock and unlock with so many tasks, each its own name; return pairs a second."""
        done = 0

        async def work(number: int) -> None:
            nonlocal done
            name = Name(root.encode(), b"%d" % number)
            while time.perf_counter() < end_s:
                self._space.unlock_nowait(await self._space.lock(name, Mode.EX))
                done += 1
                await trio.lowlevel.checkpoint()

        start_s = time.perf_counter()
        end_s = start_s + seconds
        async with trio.open_nursery() as nursery:
            for number in range(tasks):
                nursery.start_soon(work, number)
        return done / (time.perf_counter() - start_s)

    async def storm(self, prefix: str, count: int) -> dict[str, float]:
        """Make and lock new names; return the rate, and messages said before the last was held."""
        space = self._space
        before = space.outbox.batches
        waited, locks = 0, []
        start_s = time.perf_counter()
        for number in range(count):
            said = space.batches_received
            locks.append(await space.lock_new(Name(f"{prefix}{number}".encode()), Mode.EX))
            waited += space.batches_received - said
            if number % 64 == 0:
                await trio.lowlevel.checkpoint()  # as the network has to be served, too
        elapsed_s = time.perf_counter() - start_s
        said = space.outbox.batches - before
        for lock in locks:
            space.unlock_nowait(lock)
        return {"per_s": count / elapsed_s, "waited_for": waited, "batches": said}

    async def hold(self, name: str) -> None:
        """Begin a transaction: hold one name."""
        self._owner = Owner(f"transaction of node {self._me}")
        self._first = await self._space.lock(Name(name.encode()), Mode.EX, owner=self._owner)

    async def want(self, name: str) -> dict[str, Any]:
        """Let the transaction want another name, then end; return whether it gave way, when."""
        space, victim = self._space, False
        start_s = time.perf_counter()
        try:
            space.unlock_nowait(await space.lock(Name(name.encode()), Mode.EX, owner=self._owner))
        except DeadlockVictim:
            victim = True
        us = (time.perf_counter() - start_s) * 1e6
        space.unlock_nowait(self._first)
        return {"victim": victim, "us": us}

    async def make(self, prefix: str, count: int) -> None:
        """Make roots and hold a lock on each, until all are known."""
        space = self._space
        for number in range(count):
            name = Name(f"{prefix}{number}".encode())
            self._kept.append(await space.lock_new(name, Mode.PR))
            if number % 64 == 0:
                await trio.lowlevel.checkpoint()
        await space.known(self._kept[-1].name.root)

    async def share(self, prefix: str, count: int) -> None:
        """Lock what another node has made."""
        for first in range(0, count, PAGE):
            numbers = range(first, min(count, first + PAGE))
            names = [Name(f"{prefix}{number}".encode()) for number in numbers]
            locks = await self._space.lock_many(names, Mode.PR)
            self._kept.extend(lock for lock in locks if lock is not None)

    async def enter(self, epoch: int, members: list[int], leaving: Sequence[int] = ()) -> None:
        """Enter a lock epoch, and go on."""
        self._mesh.set_peers(peer for peer in self._peers if peer.node in members)
        self._space.enter(epoch, dict.fromkeys(members, 1), dict.fromkeys(leaving, 1), epoch - 1)

    async def recover(
        self, epoch: int, members: list[int], unrelated: str, lost: str
    ) -> dict[str, float]:
        """Enter a lock epoch; return how long what took, and what happened meanwhile.

        `unrelated` is a root that has nothing to do with it, and `lost` one whose master is gone.
        """
        waits: list[float] = []
        locked_s, settled_s = 0.0, 0.0
        start_s = time.perf_counter()
        cpu_s = time.process_time()

        async def lock_lost() -> None:
            nonlocal locked_s
            self._space.unlock_nowait(await self._space.lock(Name(lost.encode(), b"n"), Mode.PR))
            locked_s = time.perf_counter() - start_s

        await self.enter(epoch, members)
        entered_s = time.perf_counter() - start_s
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock_lost)
            while not settled_s or not locked_s:
                began_s = time.perf_counter()
                lock = await self._space.lock(Name(unrelated.encode(), b"n"), Mode.EX)
                waits.append(time.perf_counter() - began_s)
                self._space.unlock_nowait(lock)
                await trio.sleep(0.001)
                if self._space.settled and not settled_s:
                    settled_s = time.perf_counter() - start_s
        return {
            "enter_ms": entered_s * 1e3,
            "unrelated_first_ms": waits[0] * 1e3,
            "unrelated_worst_ms": max(waits) * 1e3,
            "lost_s": locked_s,
            "settled_s": settled_s,
            "cpu_s": time.process_time() - cpu_s,
            "locks": float(len(self._kept)),
        }

    async def fill(self, root: str, count: int) -> None:
        """Hold so many locks under one root."""
        for first in range(0, count, PAGE):
            numbers = range(first, min(count, first + PAGE))
            names = [Name(root.encode(), b"%d of %d" % (n, self._me)) for n in numbers]
            locks = await self._space.lock_many(names, Mode.PR)
            self._kept.extend(lock for lock in locks if lock is not None)

    async def migrate(self, root: str, target: int, unrelated: str) -> dict[str, float]:
        """Send a tree to another node; return how long it was frozen, and what happened meanwhile.

        `lock_ms` is how long a new lock in the tree took that was asked for when it had just been
        frozen, `unrelated_worst_ms` the same for an unrelated one.
        """
        space, waits = self._space, [0.0]
        locked_s = 0.0

        async def lock_there() -> None:
            nonlocal locked_s
            space.unlock_nowait(await space.lock(Name(root.encode(), b"new"), Mode.PR))
            locked_s = time.perf_counter() - start_s

        start_s = time.perf_counter()
        space.trees.send(root.encode(), target)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock_there)
            while space.trees.describe(root.encode()) or not locked_s:
                began_s = time.perf_counter()
                space.unlock_nowait(await space.lock(Name(unrelated.encode(), b"n"), Mode.PR))
                waits.append(time.perf_counter() - began_s)
                await trio.sleep(0.001)
        return {
            "frozen_s": space.trees.longest_freeze_s,
            "lock_ms": locked_s * 1e3,
            "unrelated_worst_ms": max(waits) * 1e3,
        }

    async def contend(self, folder: str, names: int, tasks: int) -> int:
        """Use names one after the other, each alone, until told to stop; return how often.

        The file of a name tells who begins (+) and ends (-) to use it.
        """
        uses = 0

        async def work(task: int) -> None:
            nonlocal uses
            dice = random.Random(f"{self._me} {task}")
            while not self._stopping:
                name = f"name {dice.randrange(names)}"
                lock = await self._space.lock(Name(name.encode()), Mode.EX)
                _tell(folder, name, b"+%d\n" % self._me)
                await trio.sleep(dice.choice((0, 0.001)))
                _tell(folder, name, b"-%d\n" % self._me)
                self._space.unlock_nowait(lock)
                uses += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for task in range(tasks):
                nursery.start_soon(work, task)
        return uses

    async def stop(self) -> None:
        """End what `contend` does."""
        self._stopping = True

    async def cpu(self) -> float:
        """Return how long this process has run on a processor."""
        return time.process_time()

    async def messages(self) -> dict[str, int]:
        """Return what was sent so far, by type."""
        sent = self._space.dump(only_busy=True)["sent"]
        assert isinstance(sent, dict)
        return sent


def _tell(folder: str, name: str, line: bytes) -> None:
    with Path(folder, name).open("ab", buffering=0) as told:
        told.write(line)


async def main(me: int, kind: type[Worker] = Worker) -> None:
    """Be node `me`."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(40),
    )
    locks = Locks()
    mesh = Mesh(Peer(me, 1, ""), "bench", b"bench", lambda: 1, structlog.get_logger())
    mesh.register(CHANNEL, locks)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(mesh.serve, "127.0.0.1", 0)
        print(port, flush=True)
        ports = json.loads(await _line())
        peers = {int(node): Peer(int(node), 1, f"127.0.0.1:{port}") for node, port in ports.items()}
        space = locks.space = Lockspace(
            me, 1, lambda node, message: mesh.send(node, CHANNEL, message), time.monotonic
        )
        mesh.set_peers(peers.values())
        space.enter(1, dict.fromkeys(peers, 1))
        nursery.start_soon(space.run)
        with trio.fail_after(30):
            while not space.settled:  # noqa: ASYNC110  nothing tells
                await trio.sleep(0.01)
        worker = kind(me, space, mesh, tuple(peers.values()))
        gc.set_threshold(*_COLLECTED_AFTER)
        gc.freeze()
        while line := await _line():
            command = json.loads(line)
            nursery.start_soon(_carry_out, worker, command.pop("do"), command)
        nursery.cancel_scope.cancel()


async def _carry_out(worker: Worker, name: str, arguments: dict[str, Any]) -> None:
    result = await worker.commands[name](**arguments)
    line = json.dumps([name, result])
    # In a thread: the reader may have other nodes to hear first, which need this one meanwhile.
    await trio.to_thread.run_sync(lambda: print(line, flush=True), limiter=_ONE_AT_A_TIME)


async def _line() -> str:
    return await trio.to_thread.run_sync(sys.stdin.readline)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
