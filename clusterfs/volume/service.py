"""What a replica answers when it is called: reads by clients, copies and agreement for replicas.

A read is answered only by an in-sync replica whose gate is open, in the view that the asker named
or a later one. What replicas ask of each other is answered with the gate closed too: that is how it
opens. A request of a newer epoch waits until that view is in force here.
"""

from collections.abc import Awaitable, Callable, Collection

import trio

from clusterfs.errors import ChunkCorrupted, Unavailable, WouldBlock
from clusterfs.store.objects import ABSENT, ObjectId, inode_object, split_object_id
from clusterfs.volume.comparing import Comparer, state_of
from clusterfs.volume.copies import Exporter
from clusterfs.volume.departed import Sent
from clusterfs.volume.gate import Gate
from clusterfs.volume.messages import (
    Agree,
    Blocks,
    Buried,
    Code,
    Compare,
    Compared,
    Describe,
    Differs,
    Extents,
    Fetch,
    Fetched,
    Gone,
    List,
    Listed,
    Listing,
    Marked,
    Outcome,
    Read,
    Report,
    Request,
    Scan,
    Scanned,
    Slice,
    Stood,
    Stretches,
    Stripes,
    Unstable,
)
from clusterfs.volume.placement import bitmap_to_groups
from clusterfs.volume.ports import LocalStore
from clusterfs.volume.resync import Resync
from clusterfs.volume.site import Site
from dlm.net.errors import Refused
from dlm.net.wire import encode

Reply = tuple[bytes, bytes]
Serving = Reply | Awaitable[Reply]

_PAGE = 4096
_STRIPES_PER_PAGE = 256


class Service:
    """Answers calls from this node's store."""

    def __init__(
        self, site: Site, store: LocalStore, gate: Gate, resync: Resync, comparer: Comparer
    ) -> None:
        self._comparer = comparer
        self._resync = resync
        self._site = site
        self._store = store
        self._gate = gate
        self._exporter = Exporter(store)
        self._calls: dict[type, Callable[[int, int, Request], Serving]] = {
            Fetch: self._read,
            Scan: self._read,
            Read: self._read,
            Extents: self._read,
            Stripes: self._stripes,
            Marked: self._marked,
            Outcome: self._outcome,
            List: self._list,
            Describe: self._copy,
            Slice: self._copy,
            Blocks: self._copy,
            Unstable: self._unstable,
            Agree: self._agree,
            Gone: self._gone,
            Report: self._report,
            Compare: self._compare,
            Differs: self._distrust,
        }

    def serve(self, sender: int, incarnation: int, request: Request) -> Serving:
        """Answer a call, at once if possible. Raises Refused."""
        if request.epoch > self._site.view.epoch:
            return self._later(sender, incarnation, request)
        if not self._site.view.has(sender, incarnation):
            raise Refused(Code.STALE)
        return self._calls[type(request)](sender, incarnation, request)

    async def _later(self, sender: int, incarnation: int, request: Request) -> Reply:
        await self._site.views.entered(request.epoch)
        answer = self.serve(sender, incarnation, request)
        return answer if isinstance(answer, tuple) else await answer

    # -- for clients ----------------------------------------------------------------------------

    def _read(self, sender: int, incarnation: int, request: Request) -> Serving:
        assert isinstance(request, Fetch | Scan | Read | Extents)
        self._check_group(request.group)
        if not self.ready(request.group, request.object_id):
            return self._when_ready(request)
        if not isinstance(request, Read):
            return self._look_up(request), b""
        try:
            return b"", read_nowait(self._store, request)
        except WouldBlock:
            return self._blocking_read(request)
        except ChunkCorrupted as error:
            raise Refused(Code.CORRUPTED) from error

    def ready(self, group: int, object_id: ObjectId) -> bool:
        """Tell whether this replica may answer a read of the object now."""
        site = self._site
        return site.may_serve(group) and not (site.blocked and object_id in site.blocked)

    async def _when_ready(self, request: Fetch | Scan | Read | Extents) -> Reply:
        while not self.ready(request.group, request.object_id):
            if self._site.views.lease_left_s() <= 0:
                raise Refused(Code.STALE)
            if not self._site.gate_open:
                await self._gate.wait_open()
            elif self._site.heard > self._site.view.epoch:
                await self._site.current()
            else:
                await self._site.changed()
            self._check_group(request.group)
        if not isinstance(request, Read):
            return self._look_up(request), b""
        return await self._blocking_read(request)

    def _look_up(self, request: Fetch | Scan | Extents) -> bytes:
        if isinstance(request, Fetch):
            return fetch(self._store, request)
        if isinstance(request, Scan):
            return self._scan(request)
        return encode(Stretches(tuple(extents(self._store, request))))

    async def _blocking_read(self, request: Read) -> Reply:
        if self._store.version(request.object_id) == ABSENT:
            return b"", bytes(4096 * request.count)
        try:
            data = await self._store.read(request.object_id, request.first, request.count)
        except ChunkCorrupted as error:
            raise Refused(Code.CORRUPTED) from error
        self._check_group(request.group)
        return b"", data

    def _scan(self, request: Scan) -> bytes:
        if self._store.version(request.object_id) == ABSENT:
            return encode(Scanned(()))
        limit = min(request.limit, _PAGE)
        entries = self._store.scan(request.object_id, request.prefix, request.after, limit)
        return encode(Scanned(tuple(entries)))

    def _check_group(self, group: int) -> None:
        view = self._site.view
        if group >= len(view.in_sync) or not self._site.holds(group):
            raise Refused(Code.STALE)

    async def _open_gate(self) -> None:
        while not self._site.gate_open:
            await self._gate.wait_open()

    async def _stripes(self, sender: int, incarnation: int, request: Request) -> Reply:
        assert isinstance(request, Stripes)
        await self._open_gate()
        return encode(Listing(tuple(stripes(self._store, request.inode)))), b""

    async def _marked(self, sender: int, incarnation: int, request: Request) -> Reply:
        assert isinstance(request, Marked)
        await self._open_gate()
        return encode(Listing(tuple(marked(self._store)))), b""

    async def _outcome(self, sender: int, incarnation: int, request: Request) -> Reply:
        assert isinstance(request, Outcome)
        sent = Sent(request.client, request.sequence, request.group)
        return encode(Stood(await self.took_place(sent))), b""

    async def took_place(self, sent: Sent) -> bool | None:
        """Tell whether a transaction took place whose client is gone; None: not known here."""
        await self._open_gate()
        self._check_group(sent.group)
        return self._gate.departed.took_place(sent)

    # -- for replicas ---------------------------------------------------------------------------

    def _list(self, sender: int, incarnation: int, request: Request) -> Serving:
        assert isinstance(request, List)
        groups = bitmap_to_groups(request.groups)
        if not request.after:
            return self._first_page(request, groups)
        return self._page(request, groups, 0)

    async def _first_page(self, request: List, groups: Collection[int]) -> Reply:
        total, after = 0, ObjectId(b"")
        while page := self._store.objects(None, after, _PAGE):
            total += sum(self._store.group(object_id) in groups for object_id, _ in page)
            after = page[-1][0]
            await trio.lowlevel.checkpoint()
        return self._page(request, groups, total)

    def _page(self, request: List, groups: Collection[int], total: int) -> Reply:
        page = self._store.objects(None, request.after, min(request.limit, _PAGE))
        listed = [Listed(o, self._store.group(o) or 0, version) for o, version in page]
        complete = len(page) < min(request.limit, _PAGE)
        entries = tuple(entry for entry in listed if entry.group in groups)
        return encode(Listing(entries, None if complete else page[-1][0], total)), b""

    async def _compare(self, sender: int, incarnation: int, request: Request) -> Reply:
        assert isinstance(request, Compare)
        states = [await state_of(self._store, o) for o in request.objects[:_PAGE]]
        return encode(Compared(tuple(states))), b""

    async def _distrust(self, sender: int, incarnation: int, request: Request) -> Reply:
        assert isinstance(request, Differs)
        self._check_epoch(request.epoch)
        self._check_group(request.group)
        try:
            await self._comparer.distrust(request.group, request.object_id)
        except Unavailable as error:
            raise Refused(Code.STALE) from error
        return b"", b""

    def _report(self, sender: int, incarnation: int, request: Request) -> Serving:
        return encode(self._resync.report()), b""

    def _copy(self, sender: int, incarnation: int, request: Request) -> Serving:
        if isinstance(request, Describe):
            return self._exporter.describe(sender, request)
        if isinstance(request, Slice):
            return self._exporter.slice(sender, request)
        assert isinstance(request, Blocks)
        return self._blocks(request)

    async def _blocks(self, request: Blocks) -> Reply:
        try:
            return await self._exporter.blocks(request)
        except ChunkCorrupted as error:
            raise Refused(Code.CORRUPTED) from error

    def _unstable(self, sender: int, incarnation: int, request: Request) -> Serving:
        assert isinstance(request, Unstable)
        self._check_epoch(request.epoch)
        return encode(self._gate.remembered(request)), b""

    def _gone(self, sender: int, incarnation: int, request: Request) -> Serving:
        assert isinstance(request, Gone)
        return encode(Buried(tuple(self._gate.tombstone(o) for o in request.objects))), b""

    async def _agree(self, sender: int, incarnation: int, request: Request) -> Reply:
        assert isinstance(request, Agree)
        if request.part == "entered":
            return b"", b""
        if request.part not in {"gate", "restart"}:
            raise Refused(Code.MALFORMED)
        self._check_epoch(request.epoch)
        await self._gate.wait_finished(request.part, request.epoch)
        self._check_epoch(request.epoch)
        return b"", b""

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._site.view.epoch:
            raise Refused(Code.STALE)


def fetch(store: LocalStore, request: Fetch) -> bytes:
    """Answer Fetch from a store."""
    version = store.version(request.object_id)
    if version == ABSENT:
        return encode(Fetched(ABSENT, (None,) * len(request.keys)))
    return encode(Fetched(version, tuple(store.get(request.object_id, k) for k in request.keys)))


def read_nowait(store: LocalStore, request: Read) -> bytes:
    """Answer Read from a store's memory; what is absent reads as zeros."""
    if store.version(request.object_id) == ABSENT:
        return bytes(4096 * request.count)
    return store.read_nowait(request.object_id, request.first, request.count)


def extents(store: LocalStore, request: Extents) -> list[tuple[int, int]]:
    """Answer Extents from a store; what is absent is one hole."""
    if store.version(request.object_id) == ABSENT:
        return []
    return store.extents(request.object_id, request.first, request.count)


def stripes(store: LocalStore, inode: int) -> list[Listed]:
    """Return the stripe objects of an inode in this store."""
    found: list[Listed] = []
    after = inode_object(inode)
    while True:
        page = store.objects(None, after, _STRIPES_PER_PAGE)
        for object_id, version in page:
            if split_object_id(object_id)[0] != inode:
                return found
            found.append(Listed(object_id, store.group(object_id) or 0, version))
        if len(page) < _STRIPES_PER_PAGE:
            return found
        after = page[-1][0]


def marked(store: LocalStore) -> list[Listed]:
    """Return the marked objects in this store."""
    return [Listed(o, store.group(o) or 0, store.version(o)) for o in store.marked()]
