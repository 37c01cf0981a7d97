"""One node of the measurement: a process with a mesh and a lockspace, told what to do on stdin.

Every line in and out is a JSON value: first the port out and the peers in, then commands
{"do": NAME, ...} and their results. Latencies are in microseconds.
"""

import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from dlm.errors import DeadlockVictim
from dlm.net import Answer, Mesh, Peer
from dlm.node import Lock, Lockspace, Mode, Name, Owner

CHANNEL = 1


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

    def __init__(self, me: int, space: Lockspace) -> None:
        self._me = me
        self._space = space
        self._kept: list[Lock] = []
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
        before = space.batches_sent
        waited, locks = 0, []
        start_s = time.perf_counter()
        for number in range(count):
            said = space.batches_received
            locks.append(await space.lock_new(Name(f"{prefix}{number}".encode()), Mode.EX))
            waited += space.batches_received - said
            if number % 64 == 0:
                await trio.lowlevel.checkpoint()  # as the network has to be served, too
        elapsed_s = time.perf_counter() - start_s
        said = space.batches_sent - before
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

    async def messages(self) -> dict[str, int]:
        """Return what was sent so far, by type."""
        sent = self._space.dump(only_busy=True)["sent"]
        assert isinstance(sent, dict)
        return sent


async def main(me: int) -> None:
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
        worker = Worker(me, space)
        gc.freeze()
        while line := await _line():
            command = json.loads(line)
            result = await worker.commands[command.pop("do")](**command)
            print(json.dumps(result), flush=True)
        nursery.cancel_scope.cancel()


async def _line() -> str:
    return await trio.to_thread.run_sync(sys.stdin.readline)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
