"""Calls a second between two processes over 127.0.0.1: one at a time, 256 in flight, and bulk.

Budget: 8k calls/s ping-pong, 40k with 256 in flight. Prints one line of JSON.
"""

import argparse
import json
import subprocess
import sys
import time

import structlog
import trio

from dlm.net import Mesh, Peer

CHANNEL = 2
SECRET = b"bench"
BODY = b"b" * 64
MIB = b"p" * (1 << 20)


class Echo:
    """Answers at once with what it was asked, or with as much payload as the body says."""

    def message(self, *_: object) -> None:
        """Ignore it."""

    def begin_call(
        self, _sender: int, _incarnation: int, _epoch: int, body: bytes, _payload: bytes
    ) -> tuple[bytes, bytes]:
        """Answer."""
        return (b"", MIB) if body == b"read" else (body, b"")


def mesh(node: int, address: str) -> Mesh:
    """Return one of the two nodes."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    return Mesh(Peer(node, node, address), "bench", SECRET, lambda: 1, structlog.get_logger())


async def serve() -> None:
    """Be the second process: print the port, answer until stdin closes."""
    echo = mesh(2, "")
    echo.register(CHANNEL, Echo())
    async with trio.open_nursery() as nursery:
        port = await nursery.start(echo.serve, "127.0.0.1", 0)
        echo.set_peers([Peer(1, 1, "127.0.0.1:0")])
        print(port, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


async def rate(caller: Mesh, workers: int, seconds: float, body: bytes, payload: bytes) -> float:
    """Return calls a second with so many workers in flight."""
    done = 0
    end_s = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < end_s:
            await caller.call(2, CHANNEL, body, payload)
            done += 1

    start_s = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(worker)
    return done / (time.perf_counter() - start_s)


async def measure(port: int, seconds: float) -> dict[str, float]:
    """Be the first process."""
    caller = mesh(1, "")
    async with trio.open_nursery() as nursery:
        await nursery.start(caller.serve, "127.0.0.1", 0)
        caller.set_peers([Peer(2, 2, f"127.0.0.1:{port}")])
        await caller.call(2, CHANNEL, BODY)
        result = {
            "ping_pong_per_s": await rate(caller, 1, seconds, BODY, b""),
            "in_flight_256_per_s": await rate(caller, 256, seconds, BODY, b""),
            "write_mib_per_s": await rate(caller, 8, seconds, b"w", MIB),
            "read_mib_per_s": await rate(caller, 8, seconds, b"read", b""),
        }
        nursery.cancel_scope.cancel()
    return {name: round(value) for name, value in result.items()}


def main() -> None:
    """Run both processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve)
        return
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        result = trio.run(measure, int(server.stdout.readline()), arguments.seconds)
        server.stdin.close()
    budget = {"ping_pong_per_s": 8_000, "in_flight_256_per_s": 40_000}
    print(json.dumps({"name": "rpc", **result, "budget": budget}))


if __name__ == "__main__":
    main()
