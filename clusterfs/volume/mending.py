"""Damage in this node's copy, repaired from another replica, whoever found it.

The store notes what does not read as it should: found by a read, by the scrub, or gone altogether.
Now and then, and when a read failed, this asks the store for the blocks and the replicas for their
data. A block with the same identity heals the chunk. A block that is lost here is taken from a
replica that has the object at the same version.

Invariant: the object's version, and what it reads as, are the same before and after.
"""

from itertools import groupby
from operator import itemgetter

import structlog
import trio

from clusterfs.errors import FilesystemError
from clusterfs.store.objects import ObjectId, Write
from clusterfs.volume.copies import Blockwise, Copy, Moved, describe
from clusterfs.volume.ports import LocalStore
from clusterfs.volume.site import Site
from dlm.errors import PeerLost
from dlm.net.errors import Refused

_LOOK_S = 0.5
_RETRY_S = 30.0
_AT_ONCE = 256


class Mender:
    """Repairs this node's copy. `run` is a task of its own."""

    def __init__(self, site: Site, store: LocalStore) -> None:
        self._site = site
        self._store = store
        self._log = structlog.get_logger("clusterfs.volume").bind(node=site.node)
        self._poked = trio.Event()
        self._interrupted = False  # a replica did not answer in the last round
        self.repaired = 0
        self.unrepaired = 0  # as of the last attempt

    def poke(self) -> None:
        """Something was found just now."""
        self._poked.set()

    @property
    def is_due(self) -> bool:
        """Tell whether there is damage that the last round did not see."""
        return self._store.damaged() > self.unrepaired

    async def run(self) -> None:
        """Repair what is damaged, whenever there is something."""
        while True:
            damaged = self._store.damaged()
            self.unrepaired = min(self.unrepaired, damaged)
            epoch = self._site.view.epoch
            if damaged:
                try:
                    repaired = await self._round()
                except FilesystemError as error:  # no room for a checkpoint; or the brick failed
                    repaired = 0
                    self._log.warning("cannot repair now", error=repr(error))
                self.unrepaired = self._store.damaged()
                self._log.warning("damage", repaired=repaired, left=self.unrepaired)
                if self.unrepaired >= damaged and not self._interrupted:
                    # Nobody can help now; another view may bring one who can.
                    with trio.move_on_after(_RETRY_S):
                        while self._site.view.epoch == epoch:
                            await self._site.changed()
                    continue
            self._poked = trio.Event()
            with trio.move_on_after(_LOOK_S):
                await self._poked.wait()

    async def _round(self) -> int:
        repaired, self._interrupted = 0, False
        places = sorted(await self._store.damaged_blocks(_AT_ONCE))
        for object_id, some in groupby(places, key=itemgetter(0)):
            repaired += await self._repair(object_id, [number for _, number in some])
        self.repaired += repaired
        if repaired:  # a restart must not need the log that holds the damage
            await self._store.checkpoint()
        return repaired

    async def _repair(self, object_id: ObjectId, numbers: list[int]) -> int:
        """Repair blocks of one object; return how many."""
        group = self._store.group(object_id)
        if group is None:
            return 0
        repaired = 0
        for node in self._site.others(self._site.view.in_sync[group]):
            try:
                copy = await describe(self._site, node, object_id)
                fetch = Blockwise(self._site, node, object_id, copy)
                left = [n for n in numbers if not await self._mend(object_id, n, fetch, copy)]
            except (PeerLost, Refused, Moved) as error:
                self._interrupted = True
                self._log.info("not repaired yet", object=object_id.hex(), error=repr(error))
                continue
            repaired += len(numbers) - len(left)
            numbers = left
            if not numbers:
                break
        return repaired

    async def _mend(self, object_id: ObjectId, number: int, fetch: Blockwise, copy: Copy) -> bool:
        """Repair a block from one replica, if that has it."""
        if number not in fetch.identities:
            return False
        try:
            data = await fetch([number])
            if self._store.heal(object_id, number, data):
                return True
            group = self._store.group(object_id)
            if group is None or self._store.version(object_id) != copy.version:
                return False
            self._store.replace(
                object_id, group, self._store.version(object_id), (Write(number, 1),), data
            )
        except (Refused, FilesystemError) as error:
            self._log.info("not repaired", object=object_id.hex(), block=number, error=repr(error))
            return False
        return True
