"""The client side of reads: from this node's store if it may serve, else from a replica in sync.

Retries over lost peers and changed views until a replica answers. A block that is damaged in one
copy is read from another, and the damaged copy is repaired; so a flipped bit is never returned.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog
import trio

from clusterfs.cluster.views import nodes_of
from clusterfs.errors import BrickFailed, ChunkCorrupted, WouldBlock
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    ObjectId,
    Version,
    split_object_id,
)
from clusterfs.volume.departed import Sent
from clusterfs.volume.messages import (
    Code,
    Extents,
    Fetch,
    Fetched,
    Listed,
    Listing,
    Marked,
    Outcome,
    Read,
    Request,
    Scan,
    Scanned,
    Stood,
    Stretches,
    Stripes,
)
from clusterfs.volume.service import extents, marked, stripes
from clusterfs.volume.site import Site
from dlm.errors import LockLost, PeerLost
from dlm.net.errors import Refused
from dlm.net.wire import decode, encode

T = TypeVar("T")

_RETRY_S = 0.02


class Reader:
    """This node's reads."""

    def __init__(self, site: Site, mend: Callable[[], None]) -> None:
        self._site = site
        self._mend = mend
        self._log = structlog.get_logger("clusterfs.volume").bind(node=site.node)
        self._lost = False
        self._waits: set[trio.CancelScope] = set()
        self.local = self.remote = 0

    def lose(self) -> None:
        """Fail every wait: a peer that has removed this node never answers, no view comes."""
        self._lost = True
        for scope in self._waits:
            scope.cancel()

    def begin(self) -> None:
        """Start anew as another incarnation."""
        self._lost = False

    def fetch_nowait(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        """Return version and values from this node's store; raises WouldBlock."""
        try:
            return self._fetch_here(object_id, group, keys)
        except BrickFailed as error:
            self._leave_to_others(group, error)
            raise WouldBlock("another replica must be asked") from error

    def _fetch_here(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        store = self._local(group, object_id)
        version = store.version(object_id)
        self.local += 1
        if version == ABSENT:
            return ABSENT, [None] * len(keys)
        return version, [store.get(object_id, key) for key in keys]

    def read_nowait(self, object_id: ObjectId, group: int, first: int, count: int) -> bytes:
        """Return blocks from this node's memory; raises WouldBlock."""
        store = self._local(group, object_id)
        try:
            if store.version(object_id) == ABSENT:
                return bytes(BLOCK_BYTES * count)
            data: bytes = store.read_nowait(object_id, first, count)
        except (BrickFailed, ChunkCorrupted) as error:
            self._leave_to_others(group, error)
            raise WouldBlock("another replica must be asked") from error
        self.local += 1
        return data

    async def fetch(
        self, object_id: ObjectId, group: int, keys: Sequence[bytes]
    ) -> tuple[Version, list[bytes | None]]:
        """Return version and values."""

        def nowait() -> tuple[Version, list[bytes | None]]:
            return self._fetch_here(object_id, group, keys)

        def remote(body: bytes, _: bytes) -> tuple[Version, list[bytes | None]]:
            fetched = decode(body, Fetched)
            return fetched.version, list(fetched.values)

        return await self._either(
            group, nowait, lambda epoch: Fetch(epoch, object_id, group, tuple(keys)), remote
        )

    async def scan(
        self, object_id: ObjectId, group: int, prefix: bytes, after: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return a page of keys with values."""

        def nowait() -> list[tuple[bytes, bytes]]:
            store = self._local(group, object_id)
            if store.version(object_id) == ABSENT:
                return []
            found: list[tuple[bytes, bytes]] = store.scan(object_id, prefix, after, limit)
            return found

        return await self._either(
            group,
            nowait,
            lambda epoch: Scan(epoch, object_id, group, prefix, after, limit),
            lambda body, _: list(decode(body, Scanned).entries),
        )

    async def extents(
        self, object_id: ObjectId, group: int, first: int, count: int
    ) -> list[tuple[int, int]]:
        """Return (first, count) of the stretches of blocks that are no holes."""

        def request(epoch: int) -> Extents:
            return Extents(epoch, object_id, group, first, count)

        return await self._either(
            group,
            lambda: extents(self._local(group, object_id), request(0)),
            request,
            lambda body, _: list(decode(body, Stretches).extents),
        )

    async def read(  # noqa: C901 - one loop over all that may go wrong with a replica
        self, object_id: ObjectId, group: int, first: int, count: int
    ) -> bytes:
        """Return verified blocks. Raises ChunkCorrupted when no replica has a good copy."""
        damaged = 0
        while True:
            try:
                if not damaged & self._site.bit:
                    return await self._read_local(object_id, group, first, count)
            except (BrickFailed, ChunkCorrupted) as error:
                self._leave_to_others(group, error)
                damaged |= self._site.bit
                self._log.error("damaged block", object=object_id.hex(), first=first, count=count)
            except WouldBlock:
                pass
            if damaged and not self._site.view.in_sync[group] & ~damaged:
                if count > 1:  # each copy may be damaged in another place
                    half = count // 2
                    left = await self.read(object_id, group, first, half)
                    return left + await self.read(object_id, group, first + half, count - half)
                raise ChunkCorrupted(
                    f"object {object_id.hex()}, block {first}: no replica in sync has a good copy"
                )
            node = await self._source(group, damaged)
            if node is None:
                continue
            request = Read(self._site.view.epoch, object_id, group, first, count)
            try:
                _, data = await self._call(node, request)
            except Refused as refusal:
                if refusal.code == Code.CORRUPTED:
                    damaged |= 1 << node
                else:
                    await self._pause()
                continue
            except PeerLost:
                await self._pause()
                continue
            if damaged & self._site.bit:
                self._mend()
            return data

    async def stripes(self, inode: int) -> list[tuple[int, int, Version]]:
        """Return (stripe, group, version) of the stripe objects of an inode, over all groups."""
        listed = await self._everywhere(
            lambda epoch: Stripes(epoch, inode), lambda store: stripes(store, inode), None
        )
        return [(split_object_id(e.object_id)[1] - 1, e.group, e.version) for e in listed]

    async def marked(self, groups: Sequence[int]) -> list[ObjectId]:
        """Return the marked objects of these groups."""
        listed = await self._everywhere(Marked, marked, set(groups))
        return [entry.object_id for entry in listed]

    async def took_place(
        self, sent: Sent, here: Callable[[Sent], Awaitable[bool | None]] | None
    ) -> bool | None:
        """Ask those in sync, ourselves by `here`, until one knows; None: nobody does."""
        site = self._site
        asked: set[int] = set()
        while not self._lost:
            await self._unless_lost(site.current)
            view = site.view
            if view.stopped[sent.group]:
                await self._pause()
                continue
            nodes = [n for n in nodes_of(view.in_sync[sent.group]) if n not in asked]
            if not nodes:
                return None
            try:
                known = await self._ask_outcome(nodes[0], sent, here)
            except (PeerLost, Refused):
                await self._pause()
                continue
            if known is not None:
                return known
            asked.add(nodes[0])
        raise LockLost("this node was removed from the cluster")

    async def _ask_outcome(
        self, node: int, sent: Sent, here: Callable[[Sent], Awaitable[bool | None]] | None
    ) -> bool | None:
        if node == self._site.node:
            return None if here is None else await self._unless_lost(here, sent)
        try:
            body, _ = await self._call(node, Outcome(self._site.view.epoch, *sent))
        except Refused as refusal:
            if refusal.code == Code.MALFORMED:
                return None  # an older node, that remembers nothing
            raise
        return decode(body, Stood).took_place

    # -- below ----------------------------------------------------------------------------------

    def _local(self, group: int, object_id: ObjectId) -> Any:
        site = self._site
        if site.store is None or not site.may_serve(group):
            raise WouldBlock("not from this node, or not now")
        if site.blocked and object_id in site.blocked:
            raise WouldBlock("a transaction on it is undecided")
        return site.store

    def _leave_to_others(self, group: int, error: Exception) -> None:
        """Raise what failed here if nobody else has the group.

        A brick that cannot be read has failed: the next view does not count on it any more.
        """
        site = self._site
        if isinstance(error, BrickFailed) and not site.others(site.view.in_sync[group]):
            raise error

    async def _read_local(self, object_id: ObjectId, group: int, first: int, count: int) -> bytes:
        store = self._local(group, object_id)
        if store.version(object_id) == ABSENT:
            return bytes(BLOCK_BYTES * count)
        data: bytes = await store.read(object_id, first, count)
        if not self._site.may_serve(group):  # the world may have changed during the read
            raise WouldBlock("not from this node any more")
        self.local += 1
        return data

    async def _either(
        self,
        group: int,
        nowait: Callable[[], T],
        request: Callable[[int], Request],
        remote: Callable[[bytes, bytes], T],
    ) -> T:
        """Answer from here, else from another replica, however often the world changes."""
        unfit = 0
        while True:
            try:
                return nowait()
            except BrickFailed as error:
                self._leave_to_others(group, error)
                unfit = self._site.bit
            except WouldBlock:
                pass
            node = await self._source(group, unfit)
            if node is not None:
                try:
                    return remote(*await self._call(node, request(self._site.view.epoch)))
                except (PeerLost, Refused):
                    await self._pause()

    async def _source(self, group: int, damaged: int) -> int | None:
        """Return another in-sync replica; None after waiting, when there is none or we are one."""
        site = self._site
        await self._unless_lost(site.current)
        view = site.view
        ours = site.holds(group) and not damaged & site.bit
        nodes = [] if ours or view.stopped[group] else site.others(view.in_sync[group] & ~damaged)
        if nodes:
            return nodes[0]
        await self._pause()
        return None

    async def _call(self, node: int, request: Request) -> tuple[bytes, bytes]:
        answer = await self._unless_lost(self._site.call, node, encode(request))
        self.remote += 1
        return answer

    async def _unless_lost(self, wait: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Wait for something, but no longer than this node is a member. Raises LockLost."""
        if not self._lost:
            with trio.CancelScope() as scope:
                self._waits.add(scope)
                try:
                    return await wait(*arguments)
                finally:
                    self._waits.discard(scope)
        raise LockLost("this node was removed from the cluster")

    async def _pause(self) -> None:
        """Wait for another view, but not for long."""
        with trio.move_on_after(_RETRY_S):
            await self._site.changed()

    async def _everywhere(
        self,
        request: Callable[[int], Request],
        local: Callable[[Any], list[Listed]],
        wanted: set[int] | None,
    ) -> list[Listed]:
        """Ask in-sync replicas until every wanted group was answered for by one of its own."""
        found: dict[ObjectId, Listed] = {}
        missing = set(range(len(self._site.view.in_sync))) if wanted is None else set(wanted)
        while missing:
            group = min(missing)
            try:
                listed = local(self._local(group, ObjectId(b"")))
                node = self._site.node
            except (BrickFailed, WouldBlock) as error:
                self._leave_to_others(group, error)
                unfit = self._site.bit if isinstance(error, BrickFailed) else 0
                source = await self._source(group, unfit)
                if source is None:
                    continue
                node = source
                try:
                    body, _ = await self._call(node, request(self._site.view.epoch))
                except (PeerLost, Refused):
                    await self._pause()
                    continue
                listed = list(decode(body, Listing).objects)
            view = self._site.view
            answered = {g for g in missing if view.in_sync[g] >> node & 1 and not view.stopped[g]}
            found.update({e.object_id: e for e in listed if e.group in answered})
            missing -= answered
        return [found[object_id] for object_id in sorted(found)]
