"""Messages and round trips per operation, counted on lockspaces with a network of virtual time.

Each message takes HOP_S from node to node and nothing else takes time, so the time until a lock is
granted divided by two hops is the number of round trips on the path. Messages are counted until
nothing moves any more. A batch, which is one frame on the wire, counts once.

The columns beside ours are derived from the sources of Linux 6.1: fs/dlm/lock.c, and
fs/ocfs2/dlm/dlmmaster.c and dlmlock.c, whose every message is an RPC (two packets). L: who asks,
D: the directory node, M: the master; o2dlm has no directory, n is the number of nodes.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio
import trio.testing

from dlm.core.situation import Situation
from dlm.node import Lock, Lockspace, Mode, Name

HOP_S = 0.001
QUIET_S = 30.0  # long enough for every timer: forgetting roots, telling names in batches
NODES = 4
PAGE = 100  # entries of a directory listing
STORM = 640  # names made one after the other


class Network:
    """Lockspaces 1 to NODES and what they said."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.frames = 0
        self.last_s = trio.current_time()  # when the last frame arrived
        self._nursery = nursery
        self._links: dict[tuple[int, int], trio.MemorySendChannel[tuple[float, bytes]]] = {}
        members = dict.fromkeys(range(1, NODES + 1), 1)
        self.nodes = {
            node: Lockspace(node, 1, self._sender(node), trio.current_time) for node in members
        }
        self._directory = Situation(1, 1)
        self._directory.members = members
        for space in self.nodes.values():
            nursery.start_soon(space.run)
            space.enter(1, members)

    def name(self, directory: int, leaf: bytes = b"") -> Name:
        """Return a name not used before, whose directory node is this one."""
        number = len(self._used)
        while True:
            number += 1
            root = b"root %d" % number
            if root not in self._used and self._directory.directory_of(root) == directory:
                self._used.add(root)
                return Name(root, leaf)

    _used: set[bytes] = set()  # noqa: RUF012  names differ between networks, too

    def _sender(self, source: int) -> Callable[[int, bytes], None]:
        def send(target: int, message: bytes) -> None:
            self.frames += 1
            link = self._links.get((source, target))
            if link is None:
                link, end = trio.open_memory_channel[tuple[float, bytes]](10**6)
                self._links[source, target] = link
                self._nursery.start_soon(self._carry, source, target, end)
            link.send_nowait((trio.current_time() + HOP_S, message))

        return send

    async def _carry(
        self, source: int, target: int, end: trio.MemoryReceiveChannel[tuple[float, bytes]]
    ) -> None:
        async for due_s, message in end:
            await trio.sleep_until(due_s)
            self.last_s = trio.current_time()
            self.nodes[target].deliver(source, message)


class Cost(NamedTuple):
    """One row."""

    operation: str
    messages: float
    round_trips: float
    fsdlm: str
    o2dlm: str


# To find the master: an RPC to every node, one after the other, and the master's assertion; then an
# RPC to ask it for the lock and one of its own when it is granted.
_O2DLM_FIRST = "2(n-1) + 6 / n+1"

Work = Callable[[], Awaitable[object]]
Scenario = Callable[[Network], Awaitable[tuple[Work, str, str]]]


async def local(network: Network) -> tuple[Work, str, str]:
    """Lock and unlock a name mastered here."""
    one, name = network.nodes[1], network.name(2)
    await one.lock(name, Mode.NL)

    async def work() -> None:
        one.unlock_nowait(await one.lock(Name(name.root, b"leaf"), Mode.EX))

    return work, "0 / 0", "0 / 0"


async def made_here(network: Network) -> tuple[Work, str, str]:
    """Lock a name that is new by construction (create)."""
    one, name = network.nodes[1], network.name(2)

    async def work() -> None:
        await one.lock_new(name, Mode.EX)

    return work, "2 / 1", "4(n-1) / n-1"


async def unknown(network: Network) -> tuple[Work, str, str]:
    """Lock a name that nobody uses; D is remote."""
    one, name = network.nodes[1], network.name(2)

    async def work() -> None:
        await one.lock(name, Mode.EX)

    return work, "2 / 1", "4(n-1) / n-1"


async def directory_here(network: Network) -> tuple[Work, str, str]:
    """First lock of a name; D = L, M remote."""
    return await _first(network, directory=1, master=2), "2 / 1", _O2DLM_FIRST


async def directory_is_master(network: Network) -> tuple[Work, str, str]:
    """First lock of a name; D = M, remote."""
    return await _first(network, directory=2, master=2), "2 / 1", _O2DLM_FIRST


async def all_differ(network: Network) -> tuple[Work, str, str]:
    """First lock of a name; L, D and M all differ."""
    return await _first(network, directory=3, master=2), "4 / 2", _O2DLM_FIRST


async def _first(network: Network, *, directory: int, master: int) -> Work:
    name = network.name(directory)
    await network.nodes[master].lock(name, Mode.PR)

    async def work() -> None:
        await network.nodes[1].lock(name, Mode.PR)

    return work


async def remembered(network: Network) -> tuple[Work, str, str]:
    """Lock a name again whose master is remembered, rightly."""
    name = network.name(3)
    await network.nodes[2].lock(name, Mode.PR)
    await _touch(network, 1, name)

    async def work() -> None:
        await network.nodes[1].lock(name, Mode.PR)

    return work, "2 / 1", "4 / 2"


async def remembered_wrongly(network: Network) -> tuple[Work, str, str]:
    """The same, but the name is mastered elsewhere by now."""
    name = network.name(3)
    held = await network.nodes[2].lock(name, Mode.PR)
    await _touch(network, 1, name)
    network.nodes[2].unlock_nowait(held)
    await trio.sleep(QUIET_S)
    await network.nodes[4].lock(name, Mode.PR)
    await trio.sleep(1)

    async def work() -> None:
        await network.nodes[1].lock(name, Mode.PR)

    return work, "4 to 6 / 2 to 3", "-"


async def _touch(network: Network, node: int, name: Name) -> None:
    space = network.nodes[node]
    space.unlock_nowait(await space.lock(name, Mode.PR))
    await trio.sleep(0.1)


async def converted_up(network: Network) -> tuple[Work, str, str]:
    """Convert PR to EX, nobody in the way, M remote."""
    lock = await _held(network, Mode.PR)

    async def work() -> None:
        await network.nodes[1].convert(lock, Mode.EX)

    return work, "2 / 1", "4 / 2"


async def converted_down(network: Network) -> tuple[Work, str, str]:
    """Convert EX to PR, M remote."""
    lock = await _held(network, Mode.EX)

    async def work() -> None:
        network.nodes[1].convert_down_nowait(lock, Mode.PR)

    return work, "1 / 0", "4 / 2"


async def unlocked(network: Network) -> tuple[Work, str, str]:
    """Unlock, M remote and in use by others."""
    lock = await _held(network, Mode.EX)

    async def work() -> None:
        network.nodes[1].unlock_nowait(lock)

    return work, "2 / 0", "2 / 1"


async def _held(network: Network, mode: Mode) -> Lock:
    name = network.name(3)
    await network.nodes[2].lock(name, Mode.NL)
    return await network.nodes[1].lock(name, mode)


async def contended(network: Network) -> tuple[Work, str, str]:
    """Take EX from a remote holder that gives it up at once; L, holder and M all differ."""
    name = network.name(3)
    holder = network.nodes[3]
    await network.nodes[2].lock(name, Mode.NL)
    await _touch(network, 1, name)

    def give_way(lock: Lock, _mode: Mode) -> None:
        holder.convert_down_nowait(lock, Mode.NL)

    await holder.lock(name, Mode.EX, blocking=give_way)
    await trio.sleep(1)

    async def work() -> None:
        await network.nodes[1].lock(name, Mode.EX)

    return work, "5 / 2", "10 / 4"


async def forgotten(network: Network) -> tuple[Work, str, str]:
    """The last lock of a name goes; M = L, D remote."""
    one = network.nodes[1]
    lock = await one.lock(network.name(2), Mode.EX)

    async def work() -> None:
        one.unlock_nowait(lock)

    return work, "1 / 0", "2 / 0"


async def a_page(network: Network) -> tuple[Work, str, str]:
    """Lock 100 entries of a directory (readdir + stat), D = M the same for all."""
    names = [network.name(2) for _ in range(PAGE)]
    for name in names:
        await network.nodes[2].lock(name, Mode.PR)

    async def work() -> None:
        await network.nodes[1].lock_many(names, Mode.PR)

    return work, "200 / 100", "100 (2(n-1) + 6) / 100 (n+1)"


async def storm(network: Network) -> tuple[Work, str, str]:
    """Create 640 names, one after the other, as fast as it goes; per name."""
    names = [network.name(2 + number % 3) for number in range(STORM)]

    async def work() -> None:
        for name in names:
            await network.nodes[1].lock_new(name, Mode.EX)

    return work, "2 / 1", "4(n-1) / n-1"


ROWS: tuple[Scenario, ...] = (
    local,
    made_here,
    storm,
    unknown,
    directory_here,
    directory_is_master,
    all_differ,
    remembered,
    remembered_wrongly,
    converted_up,
    converted_down,
    unlocked,
    contended,
    forgotten,
    a_page,
)
_EACH = {storm: STORM}


def measure() -> list[Cost]:
    """Return every row."""
    return [_run(row) for row in ROWS]


def _run(scenario: Scenario) -> Cost:
    async def main() -> Cost:
        async with trio.open_nursery() as nursery:
            network = Network(nursery)
            await trio.sleep(1)
            work, fsdlm, o2dlm = await scenario(network)
            await trio.sleep(1)
            before, start_s = network.frames, trio.current_time()
            await work()
            elapsed_s = trio.current_time() - start_s
            # What a timer of seconds says later belongs to the end of the name, which has a row.
            await trio.sleep(QUIET_S if scenario is forgotten else 0.5)
            said = network.frames - before
            nursery.cancel_scope.cancel()
        title = (scenario.__doc__ or "").rstrip(".")
        each = _EACH.get(scenario, 1)
        trips = elapsed_s / (2 * HOP_S) / each
        return Cost(title, round(said / each, 3), round(trips, 2), fsdlm, o2dlm)

    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(main, clock=clock)
