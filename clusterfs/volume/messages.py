"""What volumes say to each other: transactions, answers, reads, copies, agreement. PURE.

One-way messages travel in order per sender and are never lost while both incarnations are members;
calls have an answer. Every message names the epoch its sender was in. Bulk data travels beside the
message. Fields are only ever appended, with defaults: an older node then reads a newer one.
"""

import enum
from typing import Annotated, TypeVar

import msgspec

from clusterfs.store.objects import Change, Delete, ObjectId, Transaction, Version
from dlm.net.errors import Malformed

T = TypeVar("T")

CHANNEL = 2

U16 = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Code(enum.IntEnum):
    """How a replica answers; also the code of a refused call."""

    OK = 0
    STALE = 1  # not in this epoch: enter the newer view and ask again
    MISMATCH = 2  # an object is not at the expected version
    SPACE = 3
    BRICK = 4
    CORRUPTED = 5
    MALFORMED = 6
    READ_ONLY = 7  # who asks may not change the volume


class Stage(enum.IntEnum):
    """What was asked for a transaction."""

    APPLY = 0
    PREPARE = 1
    COMMIT = 2


class Known(enum.IntEnum):
    """What a replica knows of a transaction that spans replica sets."""

    UNKNOWN = 0
    PREPARED = 1
    COMMITTED = 2
    ABORTED = 3


# -- one way: client to replica ---------------------------------------------------------------


class Apply(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """Apply this transaction now. Sequences <= stable of this client are durable everywhere.

    `durable`: answer only when it, and all that was applied before it, is on disk.
    """

    transaction: Transaction
    stable: U63
    durable: bool = False


class Prepare(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """Put this transaction on disk, undecided. `groups` are those of all its participants."""

    transaction: Transaction
    stable: U63
    groups: tuple[U16, ...]


class Decide(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """The outcome of a prepared transaction; a decision to abort is not answered."""

    sequence: U63
    epoch: U63
    committed: bool


class Void(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """This transaction failed at every in-sync replica: who only noted it forgets it."""

    sequence: U63


class Watermark(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    """An idle client's periodic word: stable sequences, and credit bytes it gives back."""

    stable: U63
    returned: U63  # cumulative in this session


class Sync(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=6):
    """Put everything you applied on disk."""

    token: U63
    epoch: U63


# -- one way: replica to client ---------------------------------------------------------------


class Grant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Space credits of one client at one replica, and the replica's room."""

    granted: U63  # cumulative in this session
    share: U63  # what a client may hold now
    total: U63
    free: U63


class Answered(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=10):
    """A replica's answer to what was sent in `epoch`; `view` is its own epoch."""

    sequence: U63
    epoch: U63
    stage: Stage
    code: Code
    view: U63
    grant: Grant | None


class Synced(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=11):
    """A replica's answer to Sync."""

    token: U63
    code: Code


class Granted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=12):
    """A replica's answer to Watermark."""

    grant: Grant


class Patience(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=13):
    """A replica waits for others before it can answer; it is not the slow one."""


Message = (
    Apply | Prepare | Decide | Void | Watermark | Sync | Answered | Synced | Granted | Patience
)


# -- calls ------------------------------------------------------------------------------------


class Fetch(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=20):
    """Version and values of an object -> Fetched."""

    epoch: U63
    object_id: ObjectId
    group: U16
    keys: tuple[bytes, ...]


class Scan(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=21):
    """A page of an object's keys -> Scanned."""

    epoch: U63
    object_id: ObjectId
    group: U16
    prefix: bytes
    after: bytes
    limit: U32


class Read(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=22):
    """Blocks of an object -> the payload."""

    epoch: U63
    object_id: ObjectId
    group: U16
    first: U32
    count: U32


class Stripes(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=23):
    """Which objects of the inode exist -> Listing."""

    epoch: U63
    inode: U63


class Marked(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=24):
    """Which objects carry a mark -> Listing."""

    epoch: U63


class List(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=25):
    """Replica to replica: a page of all objects in these groups -> Listing."""

    epoch: U63
    groups: bytes  # bit map
    after: ObjectId
    limit: U32


class Describe(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=26):
    """Replica to replica: what an object consists of at one instant -> Described.

    The payload is the beginning of the packed Contents; `Slice` gets the rest. Blocks `hot` come
    along when they are in memory, from that same instant.
    """

    epoch: U63
    object_id: ObjectId
    token: U63
    hot: tuple[U32, ...]


class Slice(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=27):
    """More of the Contents described under this token -> the payload."""

    epoch: U63
    token: U63
    offset: U32


class Blocks(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=28):
    """Replica to replica: blocks of an object as they are now -> Copied, with the payload."""

    epoch: U63
    object_id: ObjectId
    numbers: tuple[U32, ...]


class Unstable(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=29):
    """Replica to replica: what do you remember of clients that are gone? -> Remembered.

    `asked` names (client, sequence) of transactions whose outcome the asker does not know.
    """

    epoch: U63
    asked: tuple[tuple[U63, U63], ...] = ()


class Agree(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=30):
    """Answered with nothing once the replica has finished its part of this epoch's exchange.

    The part is `gate` (roll-forward of clients that are gone), `restart` (of stopped groups), or
    `entered`, which is finished as soon as the replica is in that view.
    """

    epoch: U63
    part: str


class Gone(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=31):
    """Replica to replica: which of these did you delete lately? -> Buried."""

    epoch: U63
    objects: tuple[ObjectId, ...]


class Extents(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=32):
    """Which blocks of [first, first + count) of an object are no holes -> Stretches."""

    epoch: U63
    object_id: ObjectId
    group: U16
    first: U32
    count: U32


class Report(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=33):
    """For administrators: how far your resync is -> Reported."""

    epoch: U63


class Compare(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=34):
    """Replica to replica: version and digest of your copies of these objects -> Compared."""

    epoch: U63
    objects: tuple[ObjectId, ...]


class Differs(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=35):
    """Replica to replica: your copy is unlike the others'; copy it anew. Answered with nothing."""

    epoch: U63
    object_id: ObjectId
    group: U16


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=36):
    """A client that came back: did this transaction of its former incarnation take place? -> Stood.

    Asked of a replica in sync of the group, which is one of the transaction's.
    """

    epoch: U63
    client: U63
    sequence: U63
    group: U16


Request = (
    Fetch
    | Scan
    | Read
    | Stripes
    | Marked
    | List
    | Describe
    | Slice
    | Blocks
    | Unstable
    | Agree
    | Gone
    | Extents
    | Report
    | Compare
    | Differs
    | Outcome
)


class Stood(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Outcome; None: not known here."""

    took_place: bool | None


class Compared(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Compare, in that order; no digest of what is absent or changes just now."""

    states: tuple[tuple[Version, bytes], ...]


class Reported(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Report."""

    part: float = 0.0  # of the comparison
    eta_s: float | None = None
    pulled: U63 = 0  # objects, since the node started
    pulled_bytes: U63 = 0


class Fetched(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Fetch; None for a key that is not there."""

    version: Version
    values: tuple[bytes | None, ...]


class Scanned(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Scan."""

    entries: tuple[tuple[bytes, bytes], ...]


class Stretches(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Extents: (first, count), in order."""

    extents: tuple[tuple[U32, U32], ...]


class Listed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One object of a listing."""

    object_id: ObjectId
    group: U16
    version: Version
    digest: bytes = b""


class Listing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Objects by id. `end`: everything <= it was considered; None: all there is."""

    objects: tuple[Listed, ...]
    end: ObjectId | None = None
    total: U32 = 0  # how many there are in these groups; with the first page only


class Described(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Describe. The payload: packed Contents[:4 MiB], then the hot blocks' data."""

    version: Version
    group: U16
    length: U32  # of the packed Contents
    hot: tuple[U32, ...] = ()  # those that came along


class Copied(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Blocks: the keyed hash of each block sent."""

    identities: tuple[bytes, ...]


class Buried(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Gone: the version of each deletion, None where there was none."""

    versions: tuple[Version | None, ...]


class Contents(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an object consists of."""

    keys: tuple[tuple[bytes, bytes], ...]
    blocks: tuple[tuple[U32, bytes], ...]  # number and keyed hash of each block that is no hole


class Touched(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An object as a transaction left it."""

    object_id: ObjectId
    group: U16
    version: Version
    deleted: bool


class Trace(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a replica remembers of one applied transaction."""

    client: U63
    sequence: U63
    objects: tuple[Touched, ...]


class Remembered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to Unstable: what was applied, and how the asked transactions stand."""

    traces: tuple[Trace, ...]
    standings: tuple[Known, ...]  # in the order of `asked`


def touched_by(change: Change) -> Touched:
    """Return how a change leaves its object."""
    operations = change.operations
    deleted = bool(operations) and type(operations[-1]) is Delete
    return Touched(change.object_id, change.group, change.version, deleted)


_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)


def decode_message(body: bytes) -> Message:
    """Return a one-way message. Raises Malformed."""
    return _decode(body, _messages)


def decode_request(body: bytes) -> Request:
    """Return a call's request. Raises Malformed."""
    return _decode(body, _requests)


def _decode(body: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no message of the volume: {error}") from error
