"""A replica that was too slow for the others comes back by itself, once its brick is quick again.

A replica that lets others wait for too long is taken out of its sets by a view, until it returns: a
disk that hung for a while, a link that lost everything. While out it is asked for nothing. Now and
then it writes to its brick and syncs; if that goes through in time it asks to be let in, and syncs
like any other. Each return that did not last makes the next one wait twice as long. A brick that
failed never returns before the node's next start.
"""

import structlog
import trio

from clusterfs.errors import BrickFailed, FilesystemError
from clusterfs.volume.ports import LocalStore
from clusterfs.volume.site import Site

_FIRST_S = 5.0
_LONGEST_S = 600.0
_QUICK_S = 4.0  # for one write and sync: others wait longer before they take it for hung
_FACT = "returned"  # what is written; its value says when, but nobody reads it


class Returner:
    """Brings this node's replica back. `run` is a task of its own."""

    def __init__(self, site: Site, store: LocalStore) -> None:
        self._site = site
        self._store = store
        self._log = structlog.get_logger("clusterfs.volume").bind(node=site.node)
        self.returns = 0

    async def run(self) -> None:
        """Return whenever this replica is out; ends with the brick."""
        wait_s, returned_s = _FIRST_S, 0.0
        while True:
            if not self._site.view.dropped & self._site.bit:
                await self._site.changed()
                continue
            if trio.current_time() - returned_s > _LONGEST_S:
                wait_s = _FIRST_S
            await trio.sleep(wait_s)
            try:
                if not await self._quick():
                    continue
                await self._site.views.return_replica()
            except BrickFailed:
                return
            except FilesystemError as error:  # no room, or no member just now: later perhaps
                self._log.info("replica stays out", error=str(error))
                continue
            self.returns += 1
            self._log.info("replica returns", after_s=wait_s)
            wait_s, returned_s = min(2 * wait_s, _LONGEST_S), trio.current_time()

    async def _quick(self) -> bool:
        """Tell whether the brick takes a write in time. Raises what the store raises."""
        with trio.move_on_after(_QUICK_S):
            self._store.set_fact(_FACT, self._site.view.epoch)
            await self._store.sync()
            return True
        return False
