"""The etcd provider: the cluster's views in an etcd cluster, for several machines.

Each change is one etcd transaction. A heartbeat is a key's version, which etcd counts at each put,
so a renewal is one transaction too: "if my `up` key is there, put my `beat` key". No etcd lease is
used: that somebody is gone is judged by the one who watched the beat stand still on its own clock,
and the transaction that removes it compares the beat once more.

A watch tells when anything changed; it resumes where it broke off. Keys: docs/formats/view.md.

Invariants:
  * `view` and `epoch` are written together, only if the view is the one the change was made from;
  * `up/I` is there exactly while incarnation I is UP in the stored view;
  * `changed()` says False only while a watch stands that has told everything until now, as far as
    its endpoint knows; what it cannot know is compared by the transaction itself.
"""

import secrets
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
import trio

from clusterfs.cluster.providers import (
    Identity,
    Provider,
    Registration,
    Snapshot,
    refuse_store_of_another,
)
from clusterfs.cluster.providers.etcd_gateway import (
    Compacted,
    Found,
    Gateway,
    Login,
    Pair,
    RefusedByEtcd,
    delete,
    exists,
    get,
    put,
    range_answer,
    same_revision,
    same_version,
)
from clusterfs.cluster.providers.local_file import LAST_INCARNATION, free_number
from clusterfs.cluster.views import State, View, decode_view, encode_view
from clusterfs.errors import ProviderAway, SetupError

_FORMAT = 1
_CONFLICTS = 50  # in a row, before a registration gives up for now
_GARBAGE = 32  # keys deleted with one proposal: a transaction of etcd's has 128 operations
_ATTEMPTS_PER_LEASE = 6
_RESUME_S = 0.1


class _Stored(NamedTuple):
    """All keys of the cluster at one moment, by name without the prefix."""

    pairs: Mapping[bytes, Pair]

    def value(self, name: bytes) -> bytes | None:
        pair = self.pairs.get(name)
        return None if pair is None else pair.value

    def written(self, name: bytes) -> int:
        """Return the revision of the last write, 0 if the key is not there."""
        pair = self.pairs.get(name)
        return 0 if pair is None else pair.revision

    def numbers(self, folder: bytes) -> dict[int, int]:
        """Return incarnation -> version of the keys in a folder."""
        return {
            int(name.removeprefix(folder)): pair.version
            for name, pair in self.pairs.items()
            if name.startswith(folder)
        }


class EtcdProvider(Provider):
    """One daemon's access to the cluster's keys in etcd."""

    def __init__(self, login: Login, volume: str, lease_s: float) -> None:
        self._prefix = b"/clusterfs/" + volume.encode() + b"/"
        self._lease_s = lease_s
        self._etcd = Gateway(login, attempt_s=lease_s / _ATTEMPTS_PER_LEASE)
        self._watched = False
        self._changed = True
        self._told = 0  # the last revision that the watch told of
        self._view: tuple[int, View] | None = None  # decoded last, and its revision

    async def run(self) -> None:
        """Watch until cancelled."""
        resume: int | None = None
        while True:
            try:
                if resume is None:
                    resume = (await self._etcd.range(self._key(b"epoch"))).revision
                self._told = resume
                await self._etcd.watch(self._prefix, resume, self._lease_s, self._tell)
            except ProviderAway:
                self._watched = False
                resume = self._told
                await trio.sleep(_RESUME_S)
            except Compacted:
                self._watched = False
                resume = None

    async def identity(self, lease_s: float, *, found: bool = True) -> Identity:
        """Return the cluster's identity; found the cluster if nobody has and `found` allows it."""
        try:
            return await self._identity(lease_s, found=found)
        except RefusedByEtcd as refusal:
            raise SetupError(str(refusal)) from refusal

    async def _identity(self, lease_s: float, *, found: bool) -> Identity:
        key = self._key(b"identity")
        while True:
            stored = await self._etcd.range(key)
            if stored.pairs:
                return _decode_identity(stored.pairs[0].value, self._prefix)
            if not found:
                raise SetupError(
                    f"etcd has no cluster under {self._prefix.decode()}: the brick's cluster is "
                    "not there; check the keys 'provider' and 'etcd.volume'"
                )
            proposal = Identity(str(uuid.uuid4()), secrets.token_bytes(32), lease_s)
            await self._etcd.transact(
                [same_revision(key, 0)], [put(key, msgpack.packb([_FORMAT, *proposal]))]
            )

    async def names(self) -> dict[int, str]:
        """Return the name of every node number."""
        nodes = self._nodes(await self._read())
        return {node: name for name, (node, _) in nodes.items()}

    async def register(self, name: str, store_id: str = "") -> Registration:
        """Return the node number of that name and a new incarnation."""
        for _ in range(_CONFLICTS):
            stored = await self._read()
            incarnation = int(stored.value(b"incarnation") or b"0") + 1
            if incarnation > LAST_INCARNATION:
                raise SetupError("etcd: all incarnations of this cluster are used up")
            nodes = self._nodes(stored)
            refuse_store_of_another(name, store_id, {n: owned for n, (_, owned) in nodes.items()})
            known = name in nodes
            if not known:
                nodes[name] = (free_number(name, {node for node, _ in nodes.values()}), "")
            compares = [
                same_revision(self._key(b"incarnation"), stored.written(b"incarnation")),
                same_revision(self._key(b"nodes"), stored.written(b"nodes")),
            ]
            operations = [put(self._key(b"incarnation"), b"%d" % incarnation)]
            if not known:
                operations.append(put(self._key(b"nodes"), msgpack.packb(nodes)))
            if await self._etcd.transact(compares, operations) is not None:
                return Registration(nodes[name][0], incarnation, nodes[name][1])
        raise ProviderAway("etcd: too many nodes register at once")

    async def renew(self, node: int, incarnation: int) -> int | None:
        """Move the beat and return the epoch; None if this incarnation is not UP in the view."""
        del node  # an incarnation belongs to one node
        up, beat = self._key(b"up/%d" % incarnation), self._key(b"beat/%d" % incarnation)
        answers = await self._etcd.transact(
            [exists(up)], [put(beat, b""), get(self._key(b"epoch"))]
        )
        if answers is None:
            return None
        return int(_only_value(answers[1]))

    async def read(self) -> Snapshot:
        """Return the current state."""
        self._changed = False  # before the answer: what changes meanwhile is told once more
        stored = await self._read()
        view = self._decoded(stored)
        if view is None:
            return Snapshot(None, {}, frozenset())
        versions = stored.numbers(b"beat/")
        beats = {m.incarnation: versions.get(m.incarnation, 0) for m in view.members}
        return Snapshot(view, beats, frozenset(stored.numbers(b"dropped/")))

    async def propose(self, view: View, beats: Mapping[int, int]) -> bool:
        """Compare and swap the view."""
        stored = await self._read()
        former = self._decoded(stored)
        if (former.epoch if former else 0) != view.epoch - 1:
            self._changed = True
            return False
        compares = [same_revision(self._key(b"view"), stored.written(b"view"))]
        compares += [same_version(self._key(b"beat/%d" % i), beat) for i, beat in beats.items()]
        operations = [
            put(self._key(b"view"), encode_view(view)),
            put(self._key(b"epoch"), b"%d" % view.epoch),
            *self._member_operations(stored, view),
        ]
        nodes = self._nodes(stored)
        remembered = nodes | {m.name: (m.node, m.store_id) for m in view.members if m.store_id}
        if remembered != nodes:
            compares.append(same_revision(self._key(b"nodes"), stored.written(b"nodes")))
            operations.append(put(self._key(b"nodes"), msgpack.packb(remembered)))
        self._changed = True
        return await self._etcd.transact(compares, operations) is not None

    async def changed(self) -> bool:
        """Tell cheaply whether anything may have changed since the last read."""
        await trio.lowlevel.checkpoint()
        return self._changed or not self._watched

    async def caches_dropped(self, node: int, incarnation: int) -> None:
        """Note that this incarnation serves nothing any more, nor does its kernel."""
        key = self._key(b"dropped/%d" % incarnation)
        await self._etcd.transact([], [put(key, b"%d" % node)])

    async def notes(self, prefix: str) -> dict[str, bytes]:
        """Return the notes whose names begin with `prefix`."""
        stored = await self._etcd.range(self._key(b"note/" + prefix.encode()), prefix=True)
        cut = len(self._key(b"note/"))
        return {pair.key[cut:].decode(): pair.value for pair in stored.pairs}

    async def set_note(self, name: str, value: bytes | None, former: bytes | None) -> bool:
        """Compare and swap one note."""
        key = self._key(b"note/" + name.encode())
        stored = await self._etcd.range(key)
        if (stored.pairs[0].value if stored.pairs else None) != former:
            return False
        compare = same_revision(key, stored.pairs[0].revision if stored.pairs else 0)
        if value is None and former is None:
            return True
        change = delete(key) if value is None else put(key, value)
        return await self._etcd.transact([compare], [change]) is not None

    async def forget(self, name: str) -> None:
        """Forget a node's name, number and store."""
        for _ in range(_CONFLICTS):
            stored = await self._read()
            nodes = self._nodes(stored)
            if nodes.pop(name, None) is None:
                return
            compare = same_revision(self._key(b"nodes"), stored.written(b"nodes"))
            packed = put(self._key(b"nodes"), msgpack.packb(nodes))
            if await self._etcd.transact([compare], [packed]) is not None:
                return
        raise ProviderAway("etcd: too many nodes register at once")

    async def close(self) -> None:
        """Close the connections."""
        await self._etcd.close()

    def _tell(self, revision: int) -> None:
        self._told = max(self._told, revision)
        self._changed = self._watched = True

    def _key(self, name: bytes) -> bytes:
        return self._prefix + name

    async def _read(self) -> _Stored:
        answer: Found = await self._etcd.range(self._prefix, prefix=True)
        cut = len(self._prefix)
        return _Stored({pair.key[cut:]: pair for pair in answer.pairs})

    def _decoded(self, stored: _Stored) -> View | None:
        pair = stored.pairs.get(b"view")
        if pair is None:
            return None
        if self._view is None or self._view[0] != pair.revision:
            try:
                self._view = pair.revision, decode_view(pair.value)
            except ValueError as error:
                raise ProviderAway(f"etcd: {error}") from error
        return self._view[1]

    def _nodes(self, stored: _Stored) -> dict[str, tuple[int, str]]:
        packed = stored.value(b"nodes")
        if packed is None:
            return {}
        return {
            name: (node, store_id) for name, (node, store_id) in msgpack.unpackb(packed).items()
        }

    def _member_operations(self, stored: _Stored, view: View) -> list[dict[str, Any]]:
        """Return what makes the keys of members agree with the view."""
        up = {m.incarnation for m in view.members if m.state is State.UP}
        members = {m.incarnation for m in view.members}
        standing = stored.numbers(b"up/").keys()
        raised = [put(self._key(b"up/%d" % i), b"") for i in sorted(up - standing)]
        ended = [delete(self._key(b"up/%d" % i)) for i in sorted(standing - up)]
        garbage = [
            delete(self._key(folder + b"%d" % i))
            for folder in (b"beat/", b"dropped/")
            for i in sorted(stored.numbers(folder).keys() - members)
        ]
        return raised + ended + garbage[:_GARBAGE]


def _decode_identity(packed: bytes, prefix: bytes) -> Identity:
    try:
        version, *fields = msgpack.unpackb(packed)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise SetupError(f"etcd: {prefix.decode()} is not a clusterfs cluster") from error
    if version != _FORMAT:
        raise SetupError(f"etcd: {prefix.decode()} has format {version}, not {_FORMAT}")
    return Identity(*fields)


def _only_value(answer: Mapping[str, Any]) -> bytes:
    pairs = range_answer(answer["response_range"]).pairs
    if not pairs:
        raise ProviderAway("etcd: the view has no epoch")
    return pairs[0].value
