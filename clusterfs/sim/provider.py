"""A provider for worlds: the real SQLite statements, in memory, behind slow and broken links.

`SharedStore` is what all nodes of a world talk to; each has a `SimulatedProvider`, whose link
delays every call before and after its effect by a seeded time, and may be cut (ProviderAway, before
or after the effect: the caller cannot know) or frozen (calls hang until it thaws, like those of a
process that was stopped).

The store tells `watchers` of each view that was agreed, at the instant of the agreement.
"""

import random
from collections.abc import Callable, Mapping
from typing import TypeVar

import trio

from clusterfs.cluster.providers import Identity, Provider, Registration, Snapshot
from clusterfs.cluster.providers.local_file import LocalFile
from clusterfs.cluster.views import View
from clusterfs.errors import ProviderAway

T = TypeVar("T")


class SharedStore:
    """The store of views that all nodes of one world share."""

    def __init__(self, lease_s: float) -> None:
        self.file = LocalFile(":memory:")
        self.file.create()
        self.identity = self.file.identity(lease_s)
        self.watchers: list[Callable[[View | None, View], None]] = []

    def propose(self, view: View, beats: Mapping[int, int]) -> bool:
        """Compare and swap, and tell the watchers."""
        former = self.file.read().view
        if not self.file.propose(view, beats):
            return False
        for watcher in self.watchers:
            watcher(former, view)
        return True


class SimulatedProvider(Provider):
    """One node's link to the store."""

    def __init__(self, store: SharedStore, rng: random.Random, *, delay_s: float = 0.0) -> None:
        self.cut = False
        self._store = store
        self._rng = rng
        self._delay_s = delay_s
        self._thawed = trio.Event()
        self._thawed.set()
        self._epoch_and_beats: object = None

    def freeze(self) -> None:
        """Let calls hang from now on."""
        self._thawed = trio.Event()

    def thaw(self) -> None:
        """Let calls go on."""
        self._thawed.set()

    async def run(self) -> None:
        """See Provider; nothing to do."""
        await trio.lowlevel.checkpoint()

    async def identity(self, lease_s: float, *, found: bool = True) -> Identity:
        """See Provider; the world founded the cluster."""
        assert found or lease_s
        return await self._call(lambda: self._store.identity)

    async def register(self, name: str, store_id: str = "") -> Registration:
        """See Provider."""
        return await self._call(lambda: self._store.file.register(name, store_id))

    async def names(self) -> dict[int, str]:
        """Return the name of every node number."""
        return await self._call(self._store.file.names)

    async def renew(self, node: int, incarnation: int) -> int | None:
        """See Provider."""
        return await self._call(lambda: self._store.file.renew(node, incarnation))

    async def read(self) -> Snapshot:
        """See Provider."""
        return await self._call(self._store.file.read)

    async def propose(self, view: View, beats: Mapping[int, int]) -> bool:
        """See Provider."""
        return await self._call(lambda: self._store.propose(view, beats))

    async def changed(self) -> bool:
        """See Provider."""
        return await self._call(self._changed)

    async def caches_dropped(self, node: int, incarnation: int) -> None:
        """See Provider."""
        await self._call(lambda: self._store.file.caches_dropped(node, incarnation))

    async def notes(self, prefix: str) -> dict[str, bytes]:
        """See Provider."""
        return await self._call(lambda: self._store.file.notes(prefix))

    async def set_note(self, name: str, value: bytes | None, former: bytes | None) -> bool:
        """See Provider."""
        return await self._call(lambda: self._store.file.set_note(name, value, former))

    async def forget(self, name: str) -> None:
        """See Provider."""
        await self._call(lambda: self._store.file.forget(name))

    async def close(self) -> None:
        """See Provider."""
        await trio.lowlevel.checkpoint()

    def _changed(self) -> bool:
        snapshot = self._store.file.read()
        state = (snapshot.view and snapshot.view.epoch, snapshot.beats, snapshot.caches_dropped)
        changed = state != self._epoch_and_beats
        self._epoch_and_beats = state
        return changed

    async def _call(self, effect: Callable[[], T]) -> T:
        await self._travel()
        result = effect()
        await self._travel()
        return result

    async def _travel(self) -> None:
        await trio.sleep(self._rng.random() * self._delay_s)
        await self._thawed.wait()
        if self.cut:
            raise ProviderAway("the link to the store of views is cut")
