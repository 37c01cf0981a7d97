"""Copies that are of no use any more are deleted: after a rebalance, of groups that went elsewhere.

A copy goes when the view has said for a while that all wanted replicas of its group are in sync
elsewhere, and every replica is in that view: who still copied from here, by an older view, does not
any more. Until then it costs room, but makes coming back cheap.

Invariant: an object is deleted only in a step that has just found its group to be of no use here.
"""

from collections.abc import Iterable

import structlog
import trio

from clusterfs.cluster.membership import surplus
from clusterfs.cluster.views import View
from clusterfs.errors import BrickFailed, OutOfSpace, WouldBlock
from clusterfs.store.objects import ABSENT, ObjectId, Transaction
from clusterfs.volume.copies import deletion
from clusterfs.volume.messages import Agree
from clusterfs.volume.ports import LocalStore
from clusterfs.volume.site import INTERNAL, Site
from dlm.errors import PeerLost
from dlm.net.errors import Refused
from dlm.net.wire import encode

REST_S = 60.0
_PAGE = 256
_AT_ONCE = 2  # a whole stripe takes some milliseconds
_RETRY_S = 0.5


class Trimmer:
    """Deletes this node's useless copies. `run` is a task of its own."""

    def __init__(self, site: Site, store: LocalStore, rest_s: float) -> None:
        self._site = site
        self._store = store
        self._rest_s = rest_s
        self._log = structlog.get_logger("clusterfs.volume").bind(node=site.node)
        self._clean: frozenset[int] = frozenset()  # groups of no use that have no object here
        self.trimmed = 0

    async def run(self) -> None:
        """Delete what is of no use, whenever there is some."""
        while True:
            view = self._site.view
            useless = surplus(view, self._site.node)
            self._clean &= useless
            if useless - self._clean and await self._rested(useless):
                try:
                    await self._all_entered(view)
                    await self._trim()
                except (PeerLost, WouldBlock, OutOfSpace):
                    await trio.sleep(_RETRY_S)
                    continue
                except BrickFailed:
                    return  # the brick is read-only until the next start
            if self._site.view is view:
                await self._site.changed()

    async def _rested(self, useless: frozenset[int]) -> bool:
        """Wait a while; False if something became of use meanwhile."""
        with trio.move_on_after(self._rest_s):
            while surplus(self._site.view, self._site.node) >= useless:
                await self._site.changed()
            return False
        return True

    async def _all_entered(self, view: View) -> None:
        """Return once every other replica is in this view or a later one. Raises PeerLost."""
        for node in self._site.others(view.up_replicas()):
            try:
                await self._site.call(node, encode(Agree(view.epoch, "entered")))
            except Refused:  # it answered: it waits for the view before it looks at the rest
                continue

    async def _trim(self) -> None:
        useless = surplus(self._site.view, self._site.node)
        before = self.trimmed
        after = ObjectId(b"")
        while page := self._store.objects(None, after, _PAGE):
            after = page[-1][0]
            for start in range(0, len(page), _AT_ONCE):
                self._delete(object_id for object_id, _ in page[start : start + _AT_ONCE])
                await trio.lowlevel.checkpoint()
        self._clean = useless & surplus(self._site.view, self._site.node)
        if self.trimmed > before:
            self._log.info("trimmed", groups=len(useless), objects=self.trimmed - before)

    def _delete(self, objects: Iterable[ObjectId]) -> None:
        """Delete those whose group is of no use now. Raises WouldBlock, BrickFailed, OutOfSpace."""
        useless = surplus(self._site.view, self._site.node)
        changes = tuple(
            deletion(self._store, object_id, ABSENT)
            for object_id in objects
            if self._store.group(object_id) in useless
        )
        if changes:
            sequence = self._site.internal_sequence()
            transaction = Transaction(INTERNAL, sequence, self._site.view.epoch, changes)
            self._store.apply(transaction, b"")
            self._store.set_stable(INTERNAL, sequence)
            self.trimmed += len(changes)
