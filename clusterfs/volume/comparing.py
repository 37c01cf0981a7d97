"""Replicas compared in the background: a checksum of one brick never sees that two bricks differ.

An in-sync replica compares its objects with the others' by version and digest. A digest covers all
keys, values and the keyed hashes of the blocks; no data is read. Versions that differ are looked at
again: a transaction may be under way. What differs at one version, or stays different, is
*diverged*: the contents that most replicas have count, and in a draw the first replica's. The odd
ones are told; each leaves the set of that group, resyncs it, and copies that object whatever its
version.

Invariant: a replica that differs serves nothing of the group from the view on in which it is told.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
import trio

from clusterfs.errors import FilesystemError, Unavailable, VersionMismatch
from clusterfs.store.objects import ABSENT, ObjectId, Version
from clusterfs.volume.messages import Compare, Compared, Differs
from clusterfs.volume.ports import LocalStore
from clusterfs.volume.site import Site
from dlm.errors import PeerLost
from dlm.net.errors import Refused
from dlm.net.wire import decode, encode

_PAGE = 256
_LOOKS = 20  # at an object whose versions differ
_LOOK_S = 0.1
_UNSTABLE = b""

State = tuple[Version, bytes]


async def state_of(store: LocalStore, object_id: ObjectId) -> State:
    """Return version and digest of an object; ABSENT has none, nor what changes meanwhile."""
    version = store.version(object_id)
    if version == ABSENT:
        return ABSENT, _UNSTABLE
    try:
        return version, await store.digest(object_id)
    except VersionMismatch:
        return store.version(object_id), _UNSTABLE


def odd(states: Mapping[int, State]) -> list[int]:
    """Return the nodes whose copy differs from what most have; the first node's wins a draw."""
    votes = Counter(states.values())
    most = max(votes.values())
    good = next(states[node] for node in sorted(states) if votes[states[node]] == most)
    return sorted(node for node, state in states.items() if state != good)


class Comparer:
    """Compares this node's copies with the other replicas'. `run` is a task of its own."""

    def __init__(self, site: Site, store: LocalStore) -> None:
        self._site = site
        self._store = store
        self._log = structlog.get_logger("clusterfs.volume").bind(node=site.node)
        self._wanted = trio.Event()
        self.running = False
        self.compared = self.diverged = self.unstable = self.passes = 0

    def start(self) -> None:
        """Begin a pass, unless one is under way."""
        if not self.running:
            self.running = True
            self.compared = self.diverged = self.unstable = 0
            self._wanted.set()

    def stop(self) -> None:
        """End the pass that is under way."""
        self.running = False

    def progress(self) -> dict[str, Any]:
        """Return what the pass has found so far."""
        return {
            "running": self.running,
            "compared": self.compared,
            "diverged": self.diverged,
            "unstable": self.unstable,  # never twice the same while it was looked at
            "passes": self.passes,
        }

    async def run(self) -> None:
        """Make a pass whenever it is wanted."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await self._pass()
            self.passes += self.running
            self.running = False

    async def _pass(self) -> None:
        after = ObjectId(b"")
        while self.running and (page := self._store.objects(None, after, _PAGE)):
            after = page[-1][0]
            begun_s = trio.current_time()
            for group, objects in self._shared(object_id for object_id, _ in page).items():
                await self._compare(group, objects)
            await trio.sleep(trio.current_time() - begun_s)  # half of the time is for others

    def _shared(self, objects: Iterable[ObjectId]) -> dict[int, list[ObjectId]]:
        """Return by group those of the objects of which others have copies too."""
        found: dict[int, list[ObjectId]] = {}
        for object_id in objects:
            group = self._store.group(object_id)
            if group is not None and self._shares(group):
                found.setdefault(group, []).append(object_id)
        return found

    def _shares(self, group: int) -> bool:
        several = self._site.view.in_sync[group].bit_count() > 1
        return several and self._site.may_serve(group)

    async def _compare(self, group: int, objects: list[ObjectId]) -> None:
        """Compare objects of one group until they agree, or do not for good."""
        before: dict[ObjectId, dict[int, State]] = {}
        self.compared += len(objects)
        for look in range(_LOOKS):
            states = await self._states(group, objects)
            if not states:
                return  # the replicas have changed: the next pass sees to it
            differing = {o: each for o, each in states.items() if len(set(each.values())) > 1}
            for object_id, each in list(differing.items()):
                same_version = len({version for version, _ in each.values()}) == 1
                settled = same_version and _UNSTABLE not in {digest for _, digest in each.values()}
                if settled or (look == _LOOKS - 1 and before.get(object_id) == each):
                    await self._heal(group, object_id, each)
                    del differing[object_id]
            if not differing:
                return
            before, objects = differing, list(differing)
            await trio.sleep(_LOOK_S)
        self.unstable += len(objects)

    async def _states(
        self, group: int, objects: Sequence[ObjectId]
    ) -> dict[ObjectId, dict[int, State]]:
        """Ask every in-sync replica; nothing if one does not answer, or the view changed."""
        site, view = self._site, self._site.view
        request = encode(Compare(view.epoch, tuple(objects)))
        found: dict[ObjectId, dict[int, State]] = {o: {} for o in objects}
        try:
            for node in site.others(view.in_sync[group]):
                body, _ = await site.call(node, request)
                states = decode(body, Compared).states
                for object_id, state in zip(objects, states, strict=True):
                    found[object_id][node] = state
            for object_id in objects:
                found[object_id][site.node] = await state_of(self._store, object_id)
        except (PeerLost, Refused, FilesystemError):
            return {}
        return found if self._site.view is view and self._shares(group) else {}

    async def _heal(self, group: int, object_id: ObjectId, states: Mapping[int, State]) -> None:
        """Tell the replicas that differ from the others."""
        self.diverged += 1
        wrong = odd(states)
        self._log.error("replicas differ", object=object_id.hex(), group=group, odd=wrong)
        for node in wrong:
            try:
                if node == self._site.node:
                    await self.distrust(group, object_id)
                else:
                    request = Differs(self._site.view.epoch, object_id, group)
                    await self._site.call(node, encode(request))
            except (PeerLost, Refused, Unavailable) as error:
                self._log.info("not told", node=node, error=repr(error))

    async def distrust(self, group: int, object_id: ObjectId) -> None:
        """Give up this node's copy of an object, and with it, until it has resynced, its group.

        Raises Unavailable.
        """
        self._site.distrusted[object_id] = group
        await self._site.views.drop_replica(self._site.node, {group}, "its copy differs")
