"""What happens to names, told to whoever watches a directory, before others can change it again.

Whoever changed names tells it while it still holds the directory's lock exclusively, and goes on
when all watchers have heard it: so watchers hear of one directory in the order in which it changed.
Nobody watches, mostly: then this is a look into an empty set.
"""

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

Kind = Literal["create", "delete", "moved_from", "moved_to", "close_write"]


class Event(msgspec.Struct, frozen=True):
    """One change. close_write knows no directory and no name: 0 and empty."""

    kind: Kind
    inode: int
    directory: int = 0
    name: bytes = b""
    is_directory: bool = False


Tell = Callable[[Event], Awaitable[None]]


class Events:
    """Where changes are told."""

    def __init__(self) -> None:
        self.watched: frozenset[int] = frozenset()  # directories, by anybody in the cluster
        self.listener: Tell | None = None

    async def tell(self, event: Event) -> None:
        """Tell of a change, if anybody wants to know."""
        if event.directory in self.watched and self.listener is not None:
            await self.listener(event)

    async def closed(self, inode: int) -> None:
        """Tell that a file which could be written was closed."""
        if self.watched and self.listener is not None:
            await self.listener(Event("close_write", inode))
