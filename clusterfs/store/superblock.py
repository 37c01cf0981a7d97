"""brick.json: what a brick is, whose it is, and how often it was opened.

Invariants:
  * a brick of another cluster, another store, or a newer format is refused, by name;
  * a flipped bit anywhere in it is noticed: it names the logs that are this brick's;
  * the epoch is raised durably before the log is written: no two openings share one.
"""

import json
import uuid
from typing import Annotated

import msgspec
from xxhash import xxh3_64_hexdigest

from clusterfs.errors import SetupError
from clusterfs.store.disk import Disk

MAGIC = "clusterfs brick"
FORMAT_VERSION = 2


class Superblock(msgspec.Struct, frozen=True):
    """The content of brick.json."""

    magic: str
    format: int
    store_id: str
    cluster_id: str  # "" while the brick belongs to none
    segment_bytes: Annotated[int, msgspec.Meta(gt=0)]
    epoch: int
    checksum: str = ""  # xxh3_64 of this JSON with an empty checksum, in hexadecimal

    def sealed(self) -> "Superblock":
        """Return it with the right checksum."""
        bare = msgspec.structs.replace(self, checksum="")
        checksum = xxh3_64_hexdigest(msgspec.json.encode(bare))
        return msgspec.structs.replace(self, checksum=checksum)

    @property
    def store_bytes(self) -> bytes:
        """Return the store's uuid as headers hold it."""
        return uuid.UUID(self.store_id).bytes


def open_superblock(
    disk: Disk, *, store_id: str | None, cluster_id: str, segment_bytes: int
) -> Superblock:
    """Read the superblock, or make one for a new brick. Raises SetupError."""
    content = disk.read_superblock()
    if content is None:
        if disk.segments():
            raise SetupError("the brick has segments but no brick.json; give an empty directory")
        name = str(uuid.UUID(store_id)) if store_id else str(uuid.uuid4())
        return Superblock(MAGIC, FORMAT_VERSION, name, cluster_id, segment_bytes, 0)
    found = _parse(content)
    if store_id and uuid.UUID(store_id) != uuid.UUID(found.store_id):
        raise SetupError(f"the brick is store {found.store_id}, not store {store_id}")
    if cluster_id and found.cluster_id and found.cluster_id != cluster_id:
        raise SetupError(
            f"the brick belongs to cluster {found.cluster_id}, not to cluster {cluster_id}; "
            "give this node a brick of its own"
        )
    return msgspec.structs.replace(found, cluster_id=found.cluster_id or cluster_id)


def _parse(content: bytes) -> Superblock:
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise SetupError(f"brick.json is no JSON ({error}); is this a brick?") from error
    if not isinstance(raw, dict) or raw.get("magic") != MAGIC:
        raise SetupError("brick.json is not of a clusterfs brick")
    version = raw.get("format")
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise SetupError(
            f"the brick has format {version}, this clusterfs knows {FORMAT_VERSION} only: "
            "give the node an empty directory, and it synchronises a new brick"
        )
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise SetupError(
            f"the brick has format {version}, this clusterfs knows {FORMAT_VERSION}: upgrade it"
        )
    try:
        found = msgspec.convert(raw, Superblock)
        uuid.UUID(found.store_id)
    except (msgspec.ValidationError, ValueError) as error:
        raise SetupError(f"brick.json is damaged ({error})") from error
    if found != found.sealed():
        raise SetupError(
            "brick.json is damaged (its checksum is wrong); restore it from a copy, or let the "
            "node synchronise a new brick: clusterfs fsck --set-aside"
        )
    return found


def enter_epoch(disk: Disk, superblock: Superblock, seen: int) -> Superblock:
    """Raise the epoch above all before, durably."""
    entered = msgspec.structs.replace(superblock, epoch=max(superblock.epoch, seen) + 1)
    disk.write_superblock(msgspec.json.encode(entered.sealed()))
    return entered
