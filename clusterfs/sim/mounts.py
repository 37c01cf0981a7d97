"""Several mounts of one volume in one process: real filesystems, real lockspaces, models below.

Messages between lockspaces are queued per link and delivered in order, each in a step of its own.
`KernelModel` is the part of a kernel that makes coherence hard: a page cache whose pages are locked
while a READ fills them, invalidation that waits for locked pages and writes dirty ones back first,
attributes and names believed for as long as they were given.
"""

import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
import trio.testing

from clusterfs.errors import WouldBlock
from clusterfs.fs.filesystem import Filesystem, Settings
from clusterfs.fs.keys import ENTRY, ROOT, decode_entry
from clusterfs.fs.results import Attributes, Entry
from clusterfs.fs.value_block import VALUE_BYTES
from clusterfs.sim.memory_volume import MemoryVolume, Shelf, incarnation_of_inode
from clusterfs.store.objects import BLOCK_BYTES, inode_object, split_object_id
from dlm.node import Lockspace


class Page:
    """One page of a file in the page cache."""

    __slots__ = ("data", "dirty", "unlocked")

    def __init__(self) -> None:
        self.data: bytearray | None = None  # None: a READ is to fill it
        self.dirty = False
        self.unlocked = trio.Event()


class KernelModel:
    """The caches of one mount's kernel."""

    dentries_can_be_dropped = True

    def __init__(self) -> None:
        self.pages: dict[tuple[int, int], Page] = {}
        self.attributes: dict[int, tuple[Attributes, float]] = {}
        self.names: dict[tuple[int, bytes], tuple[Entry, float]] = {}
        self.filesystem: Filesystem | None = None
        self.handle_of: dict[int, int] = {}  # an inode's writable handle, for page writeback
        self.invalidations: list[tuple[int, tuple[tuple[int, int], ...]]] = []

    # -- what programs do

    async def read_page(self, inode: int, handle: int, index: int) -> bytes:
        """Read a page through the page cache."""
        assert self.filesystem is not None
        key = inode, index
        while (page := self.pages.get(key)) is not None:
            if page.data is not None:
                return bytes(page.data)
            await page.unlocked.wait()
        page = self.pages[key] = Page()
        try:
            place = handle, index * BLOCK_BYTES, BLOCK_BYTES
            data = await self.filesystem.read(*place, page_io=True)
        except BaseException:
            del self.pages[key]
            page.unlocked.set()
            raise
        page.data = bytearray(data.ljust(BLOCK_BYTES, b"\0"))
        page.unlocked.set()
        return bytes(page.data)

    async def store(self, inode: int, handle: int, index: int, value: int) -> None:
        """Store into a shared writable mapping: a fault reads the page, the store says nothing."""
        await self.read_page(inode, handle, index)
        page = self.pages.get((inode, index))
        if page is None or page.data is None:
            await self.store(inode, handle, index, value)  # invalidated at once: fault again
            return
        page.data[:] = bytes([value]) * BLOCK_BYTES
        page.dirty = True
        self.handle_of[inode] = handle

    async def stat(self, inode: int) -> Attributes:
        """Return attributes, from the cache while they may be believed."""
        assert self.filesystem is not None
        cached = self.attributes.get(inode)
        if cached is not None and trio.current_time() < cached[1]:
            return cached[0]
        try:
            status = self.filesystem.at_once.getattr(inode)
        except WouldBlock:
            status = await self.filesystem.getattr(inode)
        until_s = trio.current_time() + status.attribute_timeout_s
        self.attributes[inode] = status.attributes, until_s
        return status.attributes

    async def look(self, parent: int, name: bytes) -> Entry:
        """Look a name up, from the cache while it may be believed."""
        assert self.filesystem is not None
        cached = self.names.get((parent, name))
        if cached is not None and trio.current_time() < cached[1]:
            return cached[0]
        try:
            entry = self.filesystem.at_once.lookup(parent, name)
        except WouldBlock:
            entry = await self.filesystem.lookup(parent, name)
        self.names[parent, name] = entry, trio.current_time() + entry.entry_timeout_s
        return entry

    # -- the port

    async def invalidate_pages(self, inode: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Drop pages; wait for locked ones, write dirty ones back."""
        self.invalidations.append((inode, tuple(ranges)))
        await trio.lowlevel.checkpoint()
        for key in sorted(key for key in self.pages if key[0] == inode):
            if not any(_meets(key[1] * BLOCK_BYTES, span) for span in ranges):
                continue
            page = self.pages.get(key)
            if page is None:
                continue
            await page.unlocked.wait()
            if self.pages.get(key) is not page:
                continue
            if page.dirty:
                page.dirty = False
                await self._write_back(inode, key[1], page)
            self.pages.pop(key, None)

    async def invalidate_attributes(self, inode: int) -> None:
        """Forget attributes."""
        await trio.lowlevel.checkpoint()
        self.attributes.pop(inode, None)

    async def drop_dentries(self) -> None:
        """Forget names."""
        await trio.lowlevel.checkpoint()
        self.names.clear()

    async def _write_back(self, inode: int, index: int, page: Page) -> None:
        assert self.filesystem is not None
        assert page.data is not None
        handle, data = self.handle_of[inode], bytes(page.data)
        await self.filesystem.write(handle, index * BLOCK_BYTES, data, page_io=True)


def _meets(position: int, span: tuple[int, int]) -> bool:
    offset, length = span
    return position + BLOCK_BYTES > offset and (not length or position < offset + length)


class Node:
    """One node of the world."""

    def __init__(self, world: "World", number: int) -> None:
        self.number = number
        self.incarnation = world.next_incarnation()
        self.volume = MemoryVolume(world.shelf, self.incarnation, world.chance)
        self.kernel = KernelModel()
        self.lockspace = world.new_lockspace(self)
        self.lease_left_s = 1e9
        self.member = False
        self.fs = Filesystem(
            self.volume,
            self.lockspace,
            self.kernel,
            lease_left_s=lambda: self.lease_left_s,
            now_ns=world.now_ns,
            settings=world.settings,
        )
        self.kernel.filesystem = self.fs


class World:
    """The cluster."""

    def __init__(
        self,
        node_count: int,
        *,
        seed: int | None = None,
        settings: Settings | None = None,
        room_blocks: int = 1 << 30,
    ) -> None:
        self.shelf = Shelf(room_blocks)
        self.chance = None if seed is None else random.Random(seed)
        self.settings = settings or Settings()
        self._incarnations = 0
        self._time_ns = 10**18
        self._queue: deque[tuple[int, int, int, int, bytes]] = deque()
        self._wake = trio.Event()
        self._tasks: trio.Nursery | None = None
        self._spaces: dict[tuple[int, int], Lockspace] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self.nodes = {number: Node(self, number) for number in range(1, node_count + 1)}

    # -- made for nodes

    def next_incarnation(self) -> int:
        """Return a number never used before."""
        self._incarnations += 1
        return self._incarnations

    def now_ns(self) -> int:
        """Return the time: it goes on at each look."""
        self._time_ns += 1000
        return self._time_ns

    def new_lockspace(self, node: Node) -> Lockspace:
        """Return the lockspace of a node's incarnation."""
        source, incarnation = node.number, node.incarnation

        def send(target: int, message: bytes) -> None:
            self._post(source, incarnation, target, message)

        space = Lockspace(source, incarnation, send, trio.current_time, lvb_bytes=VALUE_BYTES)
        space.set_maker_of(lambda root: incarnation_of_inode(int.from_bytes(root)))
        self._spaces[source, incarnation] = space
        if self._tasks is not None:
            self._tasks.start_soon(space.run)
        return space

    # -- what a test does

    def members(self) -> dict[int, int]:
        """Return node to incarnation."""
        return {n: node.incarnation for n, node in self.nodes.items() if node.member}

    def remove(self, number: int) -> None:
        """Take a node out: its lease is over, the others go on without it."""
        node = self.nodes[number]
        node.member = False
        node.volume.out = True
        node.fs.lost()
        node.lockspace.lose()
        self._enter()

    async def readmit(self, number: int) -> None:
        """Let a removed node back in."""
        node = self.nodes[number]
        await node.fs.wait_dropped()
        node.incarnation = self.next_incarnation()
        node.volume.session(node.incarnation)
        node.lockspace = self.new_lockspace(node)
        node.member = True
        self._enter()
        await node.fs.readmitted(node.lockspace)

    def crash(self, number: int) -> None:
        """End a node for good."""
        node = self.nodes[number]
        node.member = False
        node.volume.out = True
        self._scopes[number].cancel()
        node.lockspace.lose()
        self._enter()

    def validate(self) -> None:
        """Check every invariant."""
        for node in self.nodes.values():
            if node.member:
                node.fs.validate()
                node.lockspace.validate()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        """Run all nodes."""
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            nursery.start_soon(self._deliver)
            for node in self.nodes.values():
                nursery.start_soon(node.lockspace.run)
                node.member = True
            self._enter()
            for node in self.nodes.values():
                await nursery.start(self._run, node)
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()

    async def count_reachable(self) -> int:
        """Return how many objects the names from the root lead to, stripes included."""
        seen: set[int] = set()
        todo = [ROOT]
        while todo:
            number = todo.pop()
            if number not in seen:
                seen.add(number)
                stored = self.shelf.objects[inode_object(number)]
                todo += [
                    decode_entry(value).inode
                    for key, value in stored.keys.items()
                    if key.startswith(ENTRY)
                ]
        return sum(split_object_id(object_id)[0] in seen for object_id in self.shelf.objects)

    async def settle(self) -> None:
        """Wait until nothing moves any more but clocks."""
        await trio.testing.wait_all_tasks_blocked()

    async def _run(self, node: Node, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as scope:
            self._scopes[node.number] = scope
            await node.fs.run(task_status=task_status)

    def _enter(self) -> None:
        self.shelf.epoch += 1
        members = self.members()
        for number in members:
            self.nodes[number].lockspace.enter(self.shelf.epoch, members, {}, self.shelf.epoch - 1)

    def _post(self, source: int, incarnation: int, target: int, message: bytes) -> None:
        to = self.nodes[target].incarnation if target in self.nodes else 0
        self._queue.append((source, incarnation, target, to, message))
        self._wake.set()

    async def _deliver(self) -> None:
        while True:
            while not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
            await trio.lowlevel.checkpoint()
            source, incarnation, target, to, message = self._queue.popleft()
            here, there = self.nodes[source], self.nodes[target]
            current = here.member and here.incarnation == incarnation
            if current and there.member and there.incarnation == to:
                there.lockspace.deliver(source, message)
