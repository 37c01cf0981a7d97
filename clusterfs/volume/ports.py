"""What a volume stands on: a store, a mesh of peers, and the agreed views; as protocols.

`clusterfs.store`, `dlm.net` and `clusterfs.cluster` fit them, and so do the models of
`clusterfs.sim`. Everything here is called on the one trio thread.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from clusterfs.cluster.views import View
from clusterfs.errors import BrickFailed
from clusterfs.store.objects import ObjectId, Operation, Transaction, Version

Buffer = bytes | bytearray | memoryview


class SpaceLike(Protocol):
    """Room of one store, in bytes."""

    @property
    def total(self) -> int:
        """What it can hold."""
        ...

    @property
    def free(self) -> int:
        """What it can still take."""
        ...


class LocalStore(Protocol):
    """This node's store. Sync methods never block."""

    async def admit_transaction(self, transaction: Transaction) -> None:
        """Wait until the transaction can be applied. Raises OutOfSpace, BrickFailed."""
        ...

    def apply(self, transaction: Transaction, payload: Buffer, *, hasten: bool = False) -> int:
        """Apply whole or not at all; hasten: `when_durable` is called next.

        Raises VersionMismatch, OutOfSpace, BrickFailed, or WouldBlock when there is no room yet.
        """
        ...

    def prepare(self, transaction: Transaction, payload: Buffer) -> int:
        """Log a transaction undecided; raises as `apply` does."""
        ...

    def commit(self, client: int, sequence: int) -> int:
        """Apply a prepared transaction."""
        ...

    def abort(self, client: int, sequence: int) -> int:
        """Forget a prepared transaction."""
        ...

    def prepared(self) -> list[Transaction]:
        """Return the undecided transactions."""
        ...

    def outcome(self, client: int, sequence: int) -> str | None:
        """Return "committed", "aborted", or None if unknown."""
        ...

    def forget_outcomes(self, client: int, below: int) -> Any:
        """Forget outcomes of sequences < below."""
        ...

    def applied(self, client: int, sequence: int) -> bool:
        """Tell whether that transaction was applied."""
        ...

    def set_stable(self, client: int, sequence: int) -> Any:
        """Say that nobody will ask for sequences <= sequence any more."""
        ...

    def forget_client(self, client: int) -> Any:
        """Forget all sequences of a client that is gone."""
        ...

    async def sync(self, position: int | None = None) -> None:
        """Return when everything applied so far is on disk. Raises BrickFailed."""
        ...

    def when_durable(self, done: Callable[[BrickFailed | None], None]) -> None:
        """Call `done`, perhaps at once, when all applied so far is on disk, or never will be."""
        ...

    def extents(self, object_id: ObjectId, first: int, count: int) -> list[tuple[int, int]]:
        """Return (first, count) of the stretches of blocks that are no holes, in order."""
        ...

    def version(self, object_id: ObjectId) -> Version:
        """Return an object's version, ABSENT if there is none."""
        ...

    def group(self, object_id: ObjectId) -> int | None:
        """Return an object's group, None if there is none."""
        ...

    def get(self, object_id: ObjectId, key: bytes) -> bytes | None:
        """Return one value."""
        ...

    def scan(
        self, object_id: ObjectId, prefix: bytes, after: bytes, limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` keys > after that start with prefix, sorted, with values."""
        ...

    async def read(self, object_id: ObjectId, first: int, count: int) -> bytes:
        """Return verified blocks. Raises ChunkCorrupted."""
        ...

    def read_nowait(self, object_id: ObjectId, first: int, count: int) -> bytes:
        """Return verified blocks, or raise WouldBlock when they are not in memory."""
        ...

    def objects(
        self, group: int | None, after: ObjectId | bytes, limit: int
    ) -> list[tuple[ObjectId, Version]]:
        """Return objects with id > after, sorted."""
        ...

    def marked(self) -> list[ObjectId]:
        """Return the objects that have a MARK."""
        ...

    def blocks(
        self, object_id: ObjectId, first: int = 0, count: int = 1 << 20
    ) -> list[tuple[int, bytes]]:
        """Return number and identity of each block that is no hole."""
        ...

    def replace(
        self,
        object_id: ObjectId,
        group: int,
        version: Version,
        operations: Sequence[Operation],
        payload: Buffer = b"",
        shares: Sequence[tuple[int, bytes]] = (),
    ) -> int:
        """Change an object whatever its version; it is at `version` afterwards.

        shares: (block, identity) of blocks that the store has. Raises NoSuchChunk if it has not,
        and what `apply` raises.
        """
        ...

    def has_chunk(self, identity: bytes) -> bool:
        """Tell whether a block of that identity is here, readable."""
        ...

    def damaged(self) -> int:
        """Return how many blocks are known not to read as they should."""
        ...

    async def damaged_blocks(self, limit: int) -> list[tuple[ObjectId, int]]:
        """Return (object, block) of these; of blocks that share their data, one."""
        ...

    def heal(self, object_id: ObjectId, block: int, data: bytes) -> bool:
        """Give a damaged block its data back; False if it is not what was there."""
        ...

    async def checkpoint(self) -> None:
        """Need no log any more that was written before. Raises BrickFailed."""
        ...

    async def digest(self, object_id: ObjectId) -> bytes:
        """Return a digest over keys and block identities."""
        ...

    def fact(self, name: str) -> int | bytes | None:
        """Return a small durable value."""
        ...

    def set_fact(self, name: str, value: int | bytes) -> int:
        """Set a small durable value; b"" removes it."""
        ...

    def space(self) -> SpaceLike:
        """Return how much room there is."""
        ...


class Mesh(Protocol):
    """Ordered, lossless links to the other members."""

    def register(self, channel: int, handler: Any) -> None:
        """Let this handler have what arrives on the channel."""
        ...

    def send(self, node: int, channel: int, body: bytes, payload: Buffer = b"") -> None:
        """Send one way; silently dropped if the node is no peer."""
        ...

    async def call(
        self, node: int, channel: int, body: bytes, payload: Buffer = b""
    ) -> tuple[bytes, bytes]:
        """Ask and wait. Raises dlm PeerLost, dlm.net Refused."""
        ...


class Views(Protocol):
    """This node's membership: `clusterfs.cluster.node.Membership`."""

    @property
    def node(self) -> int:
        """This node's number."""
        ...

    @property
    def incarnation(self) -> int:
        """This start of it."""
        ...

    @property
    def view(self) -> View:
        """The latest view."""
        ...

    def lease_left_s(self) -> float:
        """Return for how long this node may still serve."""
        ...

    async def entered(self, epoch: int) -> None:
        """Wait until the view is at that epoch or later."""
        ...

    def subscribe(self, callback: Callable[[View, View], None]) -> None:
        """Call back with (old, new) at each change."""
        ...

    async def report_in_sync(self, groups: Iterable[int]) -> set[int]:
        """Say that this node misses nothing in these groups."""
        ...

    async def restart_groups(self, groups: Iterable[int]) -> set[int]:
        """Say that these stopped groups are rolled forward."""
        ...

    async def drop_replica(
        self, node: int, groups: Iterable[int] | None = None, reason: str = ""
    ) -> None:
        """Take a replica out of its sets."""
        ...

    async def return_replica(self) -> None:
        """Let this node's replica sync again after it was taken out of all its sets."""
        ...
