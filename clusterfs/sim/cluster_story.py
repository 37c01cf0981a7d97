"""What happens in a whole-cluster world: clients on all nodes, faults of every kind, and the check.

Clients write and read blocks as a whole, append to a log, and make, remove, rename and look up
names; all write down what they did and saw. Afterwards the histories must be linearizable, what was
synced must be there, and all copies equal. The histories say what a crash may take along.
"""

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, Final

import trio

from clusterfs.errors import EntryExists, FilesystemError, NoSuchEntry
from clusterfs.fs.filesystem import Filesystem
from clusterfs.fs.keys import ROOT
from clusterfs.fs.results import Changes
from clusterfs.sim.cluster_world import Node, World
from clusterfs.sim.file_models import EMPTY_LOG, EMPTY_REGISTER, log, register
from clusterfs.sim.histories import Record, check_names, of_data, of_names
from clusterfs.sim.leases import LEASE_S
from clusterfs.sim.linearizability import Verdict, check
from clusterfs.store.objects import BLOCK_BYTES
from dlm.errors import LockError

NODES: Final = 3
BLOCKS: Final = ("block 0", "block 1")
LOG: Final = "log"
NAMES: Final = ("a", "b", "d/a", "d/b")
KINDS: Final = ("crash", "cut off", "cut one way", "short cut", "pause", "join")
BLACKOUT: Final = "blackout"  # all nodes go at once: little can be concluded of what was before
_WORD: Final = 8
_LIFE_S: Final = 1.0
_LIMIT: Final = 1_000_000  # configurations that a check looks at


class Broken(AssertionError):
    """Something that clients saw cannot be explained."""


class Client:
    """A program on one node."""

    def __init__(self, story: "Story", node: Node, number: int) -> None:
        self._story = story
        self._world = story.world
        self._node = node
        self._number = number
        self._rng = random.Random(story.rng.random())
        self._handles: dict[str, tuple[int, int]] = {}  # by file: the handle, and our number of it

    @property
    def _files(self) -> Filesystem:
        return self._node.filesystem

    async def run(self) -> None:
        """Use the files until the story ends, or the node."""
        deeds = (
            *(self._write, self._read) * 3,
            *(self._append, self._list_log, self._truncate, self._size),
            *(self._sync, self._create, self._unlink, self._rename) * 2,
            *(self._stat, self._list) * 2,
        )
        try:
            while not self._story.closing:
                await trio.sleep(self._rng.random() * 0.05)
                await self._rng.choice(deeds)()
        except LockError:
            if self._node.alive:
                raise

    async def look_at_everything(self) -> None:
        """Read all there is, once."""
        for thing in BLOCKS:
            await self._read(thing)
        await self._list_log()
        for name in NAMES:
            await self._stat(name)

    # -- data

    async def _write(self) -> None:
        thing, value = self._rng.choice(BLOCKS), self._story.value()

        async def write() -> None:
            handle = await self._open(thing)
            await self._files.write(handle, 0, value.to_bytes(_WORD) * (BLOCK_BYTES // _WORD))

        await self._note(thing, ("write", value), write)

    async def _read(self, thing: str = "") -> None:
        thing = thing or self._rng.choice(BLOCKS)

        async def read() -> int:
            handle = await self._open(thing)
            data = await self._files.read(handle, 0, BLOCK_BYTES)
            words = {data[at : at + _WORD] for at in range(0, len(data), _WORD)} or {bytes(_WORD)}
            if len(words) > 1:
                raise Broken(("half a write was read", thing, words))
            return int.from_bytes(words.pop())

        await self._note(thing, ("read",), read)

    async def _append(self) -> None:
        value = self._story.value()

        async def append() -> None:
            await self._files.write(await self._open(LOG), 0, value.to_bytes(_WORD))

        await self._note(LOG, ("append", value), append)

    async def _list_log(self) -> None:
        async def read() -> tuple[int, ...]:
            data = await self._files.read(await self._open(LOG), 0, 1 << 20)
            return tuple(int.from_bytes(data[at : at + _WORD]) for at in range(0, len(data), _WORD))

        await self._note(LOG, ("read",), read)

    async def _size(self) -> None:
        async def size() -> int:
            status = await self._files.getattr(self._story.inodes[LOG])
            return status.attributes.size // _WORD

        await self._note(LOG, ("size",), size)

    async def _truncate(self) -> None:
        async def truncate() -> None:
            await self._files.setattr(self._story.inodes[LOG], Changes(size=0))

        if self._rng.random() < 0.3:  # noqa: PLR2004
            await self._note(LOG, ("truncate",), truncate)

    async def _sync(self) -> None:
        thing = self._rng.choice((*BLOCKS, LOG))

        async def sync() -> None:
            await self._files.fsync(await self._open(thing))

        await self._note(thing, ("sync",), sync)

    async def _open(self, thing: str) -> int:
        if thing not in self._handles:
            flags = os.O_RDWR | (os.O_APPEND if thing == LOG else 0)
            opened = await self._files.open(self._story.inodes[thing], flags)
            self._handles[thing] = opened.handle, self._story.value()
        return self._handles[thing][0]

    # -- names

    async def _create(self) -> None:
        name, number = self._rng.choice(NAMES), self._story.value()

        async def create() -> int:
            try:
                made = await self._files.create(
                    *self._place(name), 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL
                )
            except EntryExists:
                return 0
            await self._files.release(made.opened.handle)
            assert made.entry.attributes is not None
            return made.entry.attributes.inode

        await self._note("names", ("create", name, number), create)

    async def _unlink(self) -> None:
        name = self._rng.choice(NAMES)

        async def unlink() -> bool:
            try:
                await self._files.unlink(*self._place(name))
            except NoSuchEntry:
                return False
            return True

        await self._note("names", ("unlink", name), unlink)

    async def _rename(self) -> None:
        old, new = self._rng.sample(NAMES, 2)

        async def rename() -> bool:
            try:
                await self._files.rename(*self._place(old), *self._place(new))
            except NoSuchEntry:
                return False
            return True

        await self._note("names", ("rename", old, new), rename)

    async def _stat(self, name: str = "") -> None:
        name = name or self._rng.choice(NAMES)

        async def look() -> int | None:
            entry = await self._files.lookup(*self._place(name))
            return None if entry.attributes is None else entry.attributes.inode

        await self._note("names", ("stat", name), look)

    async def _list(self) -> None:
        async def read() -> list[str]:
            opened = await self._files.opendir(self._story.inodes["d"])
            try:
                found = await self._files.readdir(opened.handle, 0, 100)
            finally:
                await self._files.releasedir(opened.handle)
            return [one.name.decode() for one in found if not one.name.startswith(b".")]

        await self._note("names", ("list", "d"), read)

    def _place(self, name: str) -> tuple[int, bytes]:
        folder, _, last = name.rpartition("/")
        return (self._story.inodes["d"] if folder else ROOT), last.encode()

    async def _note(
        self, thing: str, action: tuple[Any, ...], call: Callable[[], Awaitable[Any]]
    ) -> None:
        """Carry out one operation and write it down, whatever becomes of it."""
        story, invoked = self._story, self._world.instant()
        place = len(story.records)
        story.records.append(Record(self._node.number, self._number, thing, action, invoked, None))
        result, error = None, None
        try:
            result = await call()
        except FilesystemError as failure:
            error = failure.errno
            self._handles.pop(thing, None)  # it may be dead
        if not self._node.alive:
            return  # nobody is there to see it
        handle = self._handles.get(thing, (0, 0))[1]
        story.records[place] = story.records[place]._replace(
            returned=self._world.instant(), result=result, error=error, handle=handle
        )


class Story:
    """One seed's world from its start to the reckoning."""

    def __init__(self, world: World, kinds: Sequence[str] = KINDS) -> None:
        self.world = world
        self.rng = random.Random(world.seed ^ 0x570)
        self._kinds = kinds
        self.records: list[Record] = []
        self.inodes: dict[str, int] = {}
        self.closing = False
        self.met: Counter[str] = Counter()
        self._values = count(1)
        self._clients = count(1)
        self._busy: set[int] = set()  # nodes that something is being done to
        self._blackouts: list[int] = []  # when all nodes went at once, and one lost its memory

    def value(self) -> int:
        """Return a number that nothing else has."""
        return next(self._values)

    async def tell(self) -> None:
        """Live through it, and check."""
        world = self.world
        for number in range(1, NODES + 1):
            await world.start(number)
        await world.settle()
        await self._prepare(world.nodes[1].filesystem)
        for node in world.nodes.values():
            self._populate(node)
        async with trio.open_nursery() as faults:
            until_s = trio.current_time() + _LIFE_S
            while trio.current_time() < until_s:
                await trio.sleep(self.rng.random() * 0.3)
                faults.start_soon(self._fault)
        self.closing = True
        await world.settle()
        for node in world.nodes.values():
            await Client(self, node, next(self._clients)).look_at_everything()
        for node in world.nodes.values():
            await node.volume.sync()
        await world.settle()
        await self._check()

    async def _prepare(self, files: Filesystem) -> None:
        for thing in (*BLOCKS, LOG):
            made = await files.create(ROOT, thing.encode(), 0o644, os.O_RDWR)
            assert made.entry.attributes is not None
            self.inodes[thing] = made.entry.attributes.inode
            await files.fsync(made.opened.handle)
        folder = await files.mkdir(ROOT, b"d", 0o755)
        assert folder.attributes is not None
        self.inodes["d"] = folder.attributes.inode

    def _populate(self, node: Node) -> None:
        for _ in range(2):
            node.programs.start_soon(Client(self, node, next(self._clients)).run)

    # -- faults

    async def _fault(self) -> None:
        world, rng = self.world, self.rng
        kind = rng.choice(self._kinds)
        free = [n for n in sorted(world.nodes) if n not in self._busy and world.may_lose(n)]
        if kind == BLACKOUT and self._busy:
            return
        if kind == "join":
            await self._join(NODES + 1)
        elif free:
            number = rng.choice(free)
            self._busy.add(number)
            self.met[kind] += 1
            await getattr(self, f"_{kind.replace(' ', '_')}")(number)
            self._busy.discard(number)

    async def _join(self, number: int) -> None:
        if number not in self.world.nodes and number not in self._busy:
            self._busy.add(number)
            self.met["join"] += 1
            self._populate(await self.world.start(number))
            self._busy.discard(number)

    async def _crash(self, number: int) -> None:
        await self.world.crash(number)
        await trio.sleep(self.rng.random() * 0.3)
        self._populate(await self.world.start(number))

    async def _blackout(self, number: int) -> None:
        everybody = set(self.world.nodes)
        self._busy |= everybody
        await self.world.blackout(number)
        self._blackouts.append(self.world.instant())
        await trio.sleep(self.rng.random() * 0.3)
        self._populate(await self.world.start(number))
        await self.world.settle()
        self._busy -= everybody

    async def _cut_off(self, number: int) -> None:
        await self.world.cut_off(number, one_way=False)

    async def _cut_one_way(self, number: int) -> None:
        await self.world.cut_off(number, one_way=True)

    async def _short_cut(self, number: int) -> None:
        others = [other for other in self.world.nodes if other != number]
        for other in others:
            self.world.network.cut(number, other)
        await trio.sleep(self.rng.random() * LEASE_S / 2)
        for other in others:
            self.world.network.heal(number, other)

    async def _pause(self, number: int) -> None:
        mesh = self.world.nodes[number].mesh
        mesh.paused = trio.Event()
        await trio.sleep(self.rng.random() * LEASE_S / 2)
        paused, mesh.paused = mesh.paused, None
        paused.set()

    # -- the reckoning

    async def _check(self) -> None:
        found = await self.world.replicas()
        for number, mask in enumerate(self.world.agreement.view.in_sync):
            copies = [found[node].get(number) for node in found if mask >> node & 1]
            if any(copy != copies[0] for copy in copies):
                raise Broken(("copies differ", number, copies))
        losses, dark = self.world.losses, self._blackouts
        for thing in BLOCKS:
            self._explain(thing, of_data(self._of(thing), losses, dark), EMPTY_REGISTER, register)
        self._explain(LOG, of_data(self._of(LOG), losses, dark), EMPTY_LOG, log)
        names = of_names(self._of("names"), losses, dark)
        self._judge("names", check_names(names, self._limit).verdict)

    def _of(self, thing: str) -> list[Record]:
        return [record for record in self.records if record.thing == thing]

    def _explain(self, thing: str, operations: Any, initial: Any, step: Any) -> None:
        self._judge(thing, check(operations, initial, step, limit=self._limit))

    @property
    def _limit(self) -> int:
        return _LIMIT // 20 if self._blackouts else _LIMIT

    def _judge(self, thing: str, verdict: Verdict) -> None:
        if verdict.linearizable is None and self._blackouts:
            return  # nearly everything before is uncertain then: too hard
        if not verdict.linearizable:
            raise Broken((thing, verdict.linearizable, verdict.stuck, verdict.explained[-5:]))
