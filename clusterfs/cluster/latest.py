"""The latest view that this node knows, and who waits for a later one.

Invariants:
  * epochs only grow; views may be skipped;
  * subscribers are called in order, each for every change, before any waiter runs.
"""

from collections.abc import Callable

import trio

from clusterfs.cluster.views import View

Subscriber = Callable[[View, View], None]


class Latest:
    """One view, replaced by later ones."""

    def __init__(self) -> None:
        self.view: View | None = None
        self._subscribers: list[Subscriber] = []
        self._adopted = trio.Event()

    def subscribe(self, callback: Subscriber) -> None:
        """Call back with (old, new) at each change."""
        self._subscribers.append(callback)

    def newer(self, view: View) -> bool:
        """Tell whether the view is later than the latest so far."""
        return self.view is None or view.epoch > self.view.epoch

    def adopt(self, view: View) -> None:
        """Make a later view the latest."""
        assert self.newer(view)
        old, self.view = self.view, view
        if old is not None:
            for callback in self._subscribers:
                callback(old, view)
        adopted, self._adopted = self._adopted, trio.Event()
        adopted.set()

    async def wait_later(self) -> None:
        """Wait until a view is adopted."""
        await self._adopted.wait()
