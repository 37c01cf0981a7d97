"""Deadlocks between nodes that speak over real sockets."""

from collections.abc import Awaitable, Callable

import pytest
import structlog
import trio

from dlm.errors import DeadlockVictim
from dlm.net import Mesh, Peer
from dlm.node import Lockspace, Mode, Name, Owner


class Machine:
    """One node: a mesh and a lockspace on it."""

    def __init__(self, number: int) -> None:
        self.mesh = Mesh(Peer(number, 1, ""), "c", b"s", lambda: 1, structlog.get_logger())
        self.mesh.register(1, self)
        self.locks = Lockspace(
            number, 1, lambda to, message: self.mesh.send(to, 1, message), trio.current_time
        )
        self.told: list[str] = []
        self.locks.on_deadlock = self.told.append

    def message(
        self, sender: int, incarnation: int, epoch: int, body: bytes, payload: object
    ) -> None:
        del incarnation, epoch, payload
        self.locks.deliver(sender, body)


@pytest.mark.parametrize("size", [2, 3, 5])
async def test_a_ring_of_transactions_on_nodes_that_speak_over_sockets(
    size: int,
    nursery: trio.Nursery,
    until: Callable[[Callable[[], object]], Awaitable[None]],
) -> None:
    machines = [Machine(number) for number in range(1, size + 1)]
    ports = [await nursery.start(m.mesh.serve, "127.0.0.1", 0) for m in machines]
    peers = [Peer(number, 1, f"127.0.0.1:{port}") for number, port in enumerate(ports, 1)]
    for machine in machines:
        machine.mesh.set_peers(peers)
        machine.locks.enter(1, dict.fromkeys(range(1, size + 1), 1))
        nursery.start_soon(machine.locks.run)
    holding: set[int] = set()
    ended: list[str] = []

    async def transact(number: int) -> None:
        locks, owner = machines[number].locks, Owner(f"t{number}")
        first = await locks.lock(Name(b"r%d" % number), Mode.EX, owner=owner)
        holding.add(number)
        await until(lambda: len(holding) == size)
        try:
            second = await locks.lock(Name(b"r%d" % ((number + 1) % size)), Mode.EX, owner=owner)
        except DeadlockVictim as error:
            ended.append(str(error))
        else:
            locks.unlock_nowait(second)
            ended.append("")
        locks.unlock_nowait(first)

    with trio.fail_after(300):
        async with trio.open_nursery() as transactions:
            for number in range(size):
                transactions.start_soon(transact, number)
    [story] = filter(None, ended)
    assert len(ended) == size
    assert all(
        f"t{number} on node {number + 1} holds EX on r{number}" in story for number in range(size)
    )
    assert [story for machine in machines for story in machine.told] == [story]
    nursery.cancel_scope.cancel()
