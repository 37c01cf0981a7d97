"""The local provider: one SQLite file, one machine, any number of daemons, nothing to install.

Every call of SQLite's runs on a thread, because it may wait for the file's lock or for the disk.
Renewals have a connection and a thread of their own, and no commit syncs while it holds the file's
lock: a slow disk under a proposal must not cost the lease. For the same reason what renewals add to
the file's log is tidied up on the other. A call cannot be abandoned once it is on its thread, so
each waits for the lock for a quarter second at most.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import trio

from clusterfs.cluster.providers import Identity, Provider, Registration, Snapshot
from clusterfs.cluster.providers.local_file import LocalFile
from clusterfs.cluster.views import View

T = TypeVar("T")

_TIDY_EVERY = 500  # renewals of this node


class LocalProvider(Provider):
    """One daemon's access to the file."""

    def __init__(self, path: Path | str) -> None:
        self._views = _Worker(LocalFile(path))
        self._beats = _Worker(LocalFile(path, durable=False))
        self._untidy = 0  # renewals since the file was tidied up

    async def run(self) -> None:
        """Do nothing: `changed` asks the file itself."""
        await trio.lowlevel.checkpoint()

    async def identity(self, lease_s: float, *, found: bool = True) -> Identity:
        """Return the cluster's identity; make the file and found the cluster if need be."""
        await self._views.run(lambda: self._views.file.create(found=found))
        return await self._views.run(lambda: self._views.file.identity(lease_s))

    async def register(self, name: str, store_id: str = "") -> Registration:
        """Return the node number of that name and a new incarnation."""
        return await self._views.run(lambda: self._views.file.register(name, store_id))

    async def names(self) -> dict[int, str]:
        """Return the name of every node number."""
        return await self._views.run(self._views.file.names)

    async def renew(self, node: int, incarnation: int) -> int | None:
        """Move the beat and return the epoch; None if this incarnation is not UP."""
        self._untidy += 1
        return await self._beats.run(lambda: self._beats.file.renew(node, incarnation))

    async def read(self) -> Snapshot:
        """Return the current state."""
        if self._untidy >= _TIDY_EVERY:
            self._untidy = 0
            await self._views.run(self._views.file.tidy)
        return await self._views.run(self._views.file.read)

    async def propose(self, view: View, beats: Mapping[int, int]) -> bool:
        """Compare and swap the view; durable on return."""
        return await self._views.run(lambda: self._views.file.propose(view, beats))

    async def changed(self) -> bool:
        """Tell whether anybody wrote to the file since the last call."""
        return await self._views.run(self._views.file.changed)

    async def caches_dropped(self, node: int, incarnation: int) -> None:
        """Note that this incarnation serves nothing any more, nor does its kernel."""
        await self._views.run(lambda: self._views.file.caches_dropped(node, incarnation))

    async def notes(self, prefix: str) -> dict[str, bytes]:
        """Return the notes whose names begin with `prefix`."""
        return await self._views.run(lambda: self._views.file.notes(prefix))

    async def set_note(self, name: str, value: bytes | None, former: bytes | None) -> bool:
        """Compare and swap one note; durable on return."""
        return await self._views.run(lambda: self._views.file.set_note(name, value, former))

    async def forget(self, name: str) -> None:
        """Forget a node's name, number and store."""
        await self._views.run(lambda: self._views.file.forget(name))

    async def close(self) -> None:
        """Close the file."""
        await self._views.run(self._views.file.close)
        await self._beats.run(self._beats.file.close)


class _Worker:
    """A file and the one thread that may use it at a time."""

    def __init__(self, file: LocalFile) -> None:
        self.file = file
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._limiter)
