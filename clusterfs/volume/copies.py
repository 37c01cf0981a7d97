"""Objects from replica to replica: described at one instant, then only the missing blocks.

`Exporter` answers; `describe` and `Blockwise` ask. A description holds all keys and the keyed hash
of every block as of one instant. Blocks are then fetched as they are now, each with its hash; one
that changed since is reported as moved, and the next description brings the moved ones along.

A block that no replica can read is lost: it is written down as such, and reading it is an error. It
must not keep the rest of the object, or all groups, waiting for ever.

Invariant: a block is taken only with the hash that the description names.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog
import trio

from clusterfs.errors import FilesystemError, NoSuchChunk, WouldBlock
from clusterfs.store.objects import (
    ABSENT,
    BLOCK_BYTES,
    Change,
    Delete,
    Discard,
    Lose,
    ObjectId,
    Operation,
    Put,
    Remove,
    Transaction,
    Version,
    Write,
    joined,
)
from clusterfs.store.state import INCOMPLETE
from clusterfs.volume.messages import Blocks, Code, Contents, Copied, Describe, Described, Slice
from clusterfs.volume.pace import Pace
from clusterfs.volume.ports import LocalStore
from clusterfs.volume.site import INTERNAL, Site
from dlm.errors import PeerLost
from dlm.net.errors import Refused
from dlm.net.wire import decode, encode

_log = structlog.get_logger("clusterfs.volume")

SLICE_BYTES = 4 << 20
BLOCKS_PER_CALL = 256
STEP_KEYS = 4096  # some milliseconds
_ALL_KEYS = 1 << 30
_TRIES = 20
_OPERATIONS = 1024
_KEPT_DESCRIPTIONS = 16


class Moved(FilesystemError):
    """Blocks changed between their description and their transfer."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__(f"{len(numbers)} blocks changed meanwhile")
        self.numbers = tuple(numbers)


class Copy(NamedTuple):
    """An object as another replica described it."""

    version: Version
    group: int
    keys: dict[bytes, bytes]
    blocks: list[tuple[int, bytes]]
    hot: dict[int, bytes]  # data that came along, by block


class Exporter:
    """Describes this node's objects to others."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._described: dict[tuple[int, int], bytes] = {}

    def describe(
        self, sender: int, request: Describe
    ) -> tuple[bytes, bytes] | Awaitable[tuple[bytes, bytes]]:
        """Answer Describe, from one instant; an object with many keys is gone through in steps."""
        if self._store.version(request.object_id) == ABSENT:
            return encode(Described(ABSENT, 0, 0)), b""
        keys = self._store.scan(request.object_id, b"", b"", STEP_KEYS)
        if len(keys) < STEP_KEYS:
            return self._answer(sender, request, keys)
        return self._describe_large(sender, request)

    async def _describe_large(self, sender: int, request: Describe) -> tuple[bytes, bytes]:
        """Read the keys in steps, again if the object changed meanwhile, but not for ever."""
        store, object_id = self._store, request.object_id
        for _ in range(_TRIES):
            version = store.version(object_id)
            keys = await _all_keys(store, object_id)
            if store.version(object_id) == version != ABSENT:
                return self._answer(sender, request, keys)
        if store.version(object_id) == ABSENT:
            return encode(Described(ABSENT, 0, 0)), b""
        return self._answer(sender, request, store.scan(object_id, b"", b"", _ALL_KEYS))

    def _answer(
        self, sender: int, request: Describe, keys: Sequence[tuple[bytes, bytes]]
    ) -> tuple[bytes, bytes]:
        store, object_id = self._store, request.object_id
        version = store.version(object_id)
        packed = encode(Contents(tuple(keys), tuple(store.blocks(object_id))))
        if len(packed) > SLICE_BYTES:
            while len(self._described) >= _KEPT_DESCRIPTIONS:
                del self._described[next(iter(self._described))]
            self._described[sender, request.token] = packed
        came: list[int] = []
        pieces = [packed[:SLICE_BYTES]]
        for number in request.hot[:BLOCKS_PER_CALL]:
            try:
                pieces.append(store.read_nowait(object_id, number, 1))
            except WouldBlock:
                continue
            came.append(number)
        described = Described(version, store.group(object_id) or 0, len(packed), tuple(came))
        return encode(described), b"".join(pieces)

    def slice(self, sender: int, request: Slice) -> tuple[bytes, bytes]:
        """Answer Slice; empty if the description is not kept any more."""
        packed = self._described.get((sender, request.token), b"")
        end = request.offset + SLICE_BYTES
        if end >= len(packed):
            self._described.pop((sender, request.token), None)
        return b"", packed[request.offset : end]

    async def blocks(self, request: Blocks) -> tuple[bytes, bytes]:
        """Answer Blocks; a block that changed while it was read has an empty hash."""
        numbers = request.numbers[:BLOCKS_PER_CALL]
        before = self._identities(request.object_id, numbers)
        pieces = [
            await self._store.read(request.object_id, first, count)
            for first, count in joined(numbers)
        ]
        after = self._identities(request.object_id, numbers)
        stable = [a if a == b else b"" for a, b in zip(after, before, strict=True)]
        return encode(Copied(tuple(stable))), b"".join(pieces)

    def _identities(self, object_id: ObjectId, numbers: Sequence[int]) -> list[bytes]:
        if self._store.version(object_id) == ABSENT:
            return [b""] * len(numbers)
        known: dict[int, bytes] = {}
        for first, count in joined(numbers):
            known.update(self._store.blocks(object_id, first, count))
        return [known.get(number, b"") for number in numbers]


async def describe(site: Site, node: int, object_id: ObjectId, hot: tuple[int, ...] = ()) -> Copy:
    """Ask a replica what an object consists of. Raises PeerLost, Refused, Moved."""
    epoch, token = site.view.epoch, site.internal_sequence()
    body, payload = await site.call(node, encode(Describe(epoch, object_id, token, hot)))
    described = decode(body, Described)
    if described.version == ABSENT:
        return Copy(ABSENT, 0, {}, [], {})
    taken = min(described.length, SLICE_BYTES)
    packed = bytearray(payload[:taken])
    while len(packed) < described.length:
        _, more = await site.call(node, encode(Slice(epoch, token, len(packed))))
        if not more:
            raise Moved(())
        packed += more
    contents = decode(bytes(packed), Contents)
    data = {
        number: bytes(payload[taken + i * BLOCK_BYTES : taken + (i + 1) * BLOCK_BYTES])
        for i, number in enumerate(described.hot)
    }
    return Copy(
        described.version, described.group, dict(contents.keys), list(contents.blocks), data
    )


class Blockwise:
    """Fetches blocks of one described object; `took` is told how many bytes came each time."""

    def __init__(
        self,
        site: Site,
        node: int,
        object_id: ObjectId,
        copy: Copy,
        pace: Pace | None = None,
        took: Callable[[int], None] | None = None,
    ) -> None:
        self._pace = pace
        self._took = took
        self._site = site
        self._node = node
        self._object_id = object_id
        self._hot = copy.hot
        self._copy = copy
        self.identities = dict(copy.blocks)

    async def __call__(self, numbers: Sequence[int]) -> bytes:
        """Return the data of these blocks. Raises Moved, PeerLost, Refused."""
        wanted = [number for number in numbers if number not in self._hot]
        data = {number: self._hot[number] for number in numbers if number in self._hot}
        moved: list[int] = []
        for start in range(0, len(wanted), BLOCKS_PER_CALL):
            some = wanted[start : start + BLOCKS_PER_CALL]
            if self._pace is not None:
                await self._pace.take(len(some) * BLOCK_BYTES)
            request = Blocks(self._site.view.epoch, self._object_id, tuple(some))
            body, payload = await self._site.call(self._node, encode(request))
            identities = decode(body, Copied).identities
            if self._took is not None:
                self._took(len(some) * BLOCK_BYTES)
            for i, number in enumerate(some):
                if identities[i] != self.identities[number]:
                    moved.append(number)
                data[number] = bytes(payload[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES])
        if moved:
            raise Moved(moved)
        return b"".join(data[number] for number in numbers)

    async def available(self, numbers: Sequence[int]) -> tuple[list[int], bytes]:
        """Return those of the blocks that some replica can read, and their data.

        The others are lost, unless the one replica that has them is repaired. Raises Moved,
        PeerLost, Refused.
        """
        try:
            return list(numbers), await self(numbers)
        except Refused as refusal:
            if refusal.code != Code.CORRUPTED:
                raise
        if len(numbers) == 1:
            data = await self._elsewhere(numbers[0])
            return ([], b"") if data is None else (list(numbers), data)
        half = len(numbers) // 2
        left, data = await self.available(numbers[:half])
        right, more = await self.available(numbers[half:])
        return left + right, data + more

    async def _elsewhere(self, number: int) -> bytes | None:
        """Read a block from another replica that has the object at the same version."""
        for node in self._site.others(self._site.view.in_sync[self._copy.group]):
            if node == self._node:
                continue
            try:
                copy = await describe(self._site, node, self._object_id)
                if dict(copy.blocks).get(number) == self.identities[number]:
                    return await Blockwise(self._site, node, self._object_id, copy)([number])
            except (PeerLost, Refused, Moved):
                continue
        _log.error("block lost", object=self._object_id.hex(), block=number, node=self._site.node)
        return None


async def replace(store: LocalStore, object_id: ObjectId, copy: Copy, fetch: "Blockwise") -> None:
    """Make the local object a copy, in bounded pieces; interrupted, it is left INCOMPLETE.

    Raises what `fetch` and the store raise.
    """
    keys, blocks = await _local(store, object_id)
    expected = store.version(object_id)
    theirs = dict(copy.blocks)
    operations: list[Operation] = [Remove(key) for key in keys if key not in copy.keys]
    operations += [Put(k, v) for k, v in copy.keys.items() if keys.get(k) != v]
    operations += [Discard(*run) for run in joined(sorted(b for b in blocks if b not in theirs))]
    wanted = sorted(b for b, identity in theirs.items() if blocks.get(b) != identity)
    if expected == ABSENT or len(operations) > _OPERATIONS or wanted:
        for start in range(0, len(operations), _OPERATIONS):
            some = operations[start : start + _OPERATIONS]
            await _replace(store, object_id, copy.group, INCOMPLETE, some, b"")
        operations = []
    for start in range(0, len(wanted), BLOCKS_PER_CALL):
        await _fill(store, object_id, copy, wanted[start : start + BLOCKS_PER_CALL], fetch)
    await _replace(store, object_id, copy.group, copy.version, operations, b"")


async def _fill(
    store: LocalStore, object_id: ObjectId, copy: Copy, numbers: list[int], fetch: "Blockwise"
) -> None:
    """Give an incomplete object some blocks: from this store if it has them, else from afar."""
    identities = fetch.identities
    for number in [n for n in numbers if store.has_chunk(identities[n])]:
        try:
            share = [(number, identities[number])]
            store.replace(object_id, copy.group, INCOMPLETE, (), b"", share)
        except (NoSuchChunk, WouldBlock):
            continue
        numbers = [n for n in numbers if n != number]
    if numbers:
        writes, data = await _writes(numbers, fetch)
        await _replace(store, object_id, copy.group, INCOMPLETE, writes, data)


async def _writes(numbers: Sequence[int], fetch: "Blockwise") -> tuple[list[Operation], bytes]:
    """Return the operations that give these blocks what another replica has, and the data."""
    available, data = await fetch.available(numbers)
    lost = sorted(set(numbers) - set(available))
    operations: list[Operation] = [Write(*run) for run in joined(available)]
    return operations + [Lose(*run) for run in joined(lost)], data


async def _replace(
    store: LocalStore,
    object_id: ObjectId,
    group: int,
    version: Version,
    operations: Sequence[Operation],
    payload: bytes,
) -> None:
    change = Change(object_id, group, ABSENT, version, tuple(operations))
    while True:
        try:
            store.replace(object_id, group, version, operations, payload)
        except WouldBlock:
            await store.admit_transaction(Transaction(INTERNAL, 0, 0, (change,)))
        else:
            return


async def _all_keys(store: LocalStore, object_id: ObjectId) -> list[tuple[bytes, bytes]]:
    """Return all keys with values, read in steps with others in between."""
    keys: list[tuple[bytes, bytes]] = []
    while page := store.scan(object_id, b"", keys[-1][0] if keys else b"", STEP_KEYS):
        keys += page
        if len(page) < STEP_KEYS:
            break
        await trio.lowlevel.checkpoint()
    return keys


async def _local(
    store: LocalStore, object_id: ObjectId
) -> tuple[dict[bytes, bytes], dict[int, bytes]]:
    """Return keys and blocks of the local copy, which nobody else changes meanwhile."""
    if store.version(object_id) == ABSENT:
        return {}, {}
    keys = await _all_keys(store, object_id)
    return dict(keys), dict(store.blocks(object_id))


async def difference(
    store: LocalStore, object_id: ObjectId, copy: Copy, fetch: Blockwise
) -> tuple[Change, bytes]:
    """Return the change, with its payload, that makes the local object equal to the copy."""
    keys, blocks = await _local(store, object_id)
    expected = store.version(object_id)
    operations: list[Operation] = [Remove(key) for key in keys if key not in copy.keys]
    operations += [Put(k, v) for k, v in copy.keys.items() if keys.get(k) != v]
    theirs = dict(copy.blocks)
    operations += [Discard(*run) for run in joined(sorted(b for b in blocks if b not in theirs))]
    wanted = sorted(b for b, identity in theirs.items() if blocks.get(b) != identity)
    writes, payload = await _writes(wanted, fetch) if wanted else ([], b"")
    operations += writes
    return Change(object_id, copy.group, expected, copy.version, tuple(operations)), payload


def deletion(store: LocalStore, object_id: ObjectId, version: Version) -> Change:
    """Return the change that deletes a local object as of a version."""
    expected = store.version(object_id)
    later = max(version, Version(expected.epoch, expected.counter + 1))
    group = store.group(object_id)
    assert group is not None, "only what is there can be deleted"
    return Change(object_id, group, expected, later, (Delete(),))
