"""What `clusterfs watch --recursive` knows of its tree: which directories and names there are.

Every directory of the tree is watched. One that is new is watched first and listed then, so what
is in it by then is told as created, and nothing that stays is missed; what is made and gone again
before is not told. A directory that is moved within the tree stays watched and has another path.

Invariants: `places` has exactly the names of all folders, by inode; an event about a name that is
as the event says already is not told again.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

Shown = dict[str, Any]


class Found(NamedTuple):
    """One name of a directory."""

    name: str
    inode: int
    is_directory: bool


List = Callable[[str, int], Iterable[Found] | None]  # of a path; None: it is not that inode now
Change = Callable[[list[int], list[int]], None]  # directories to watch, and to watch no more


class Folder:
    """A directory of the tree; `parent` None: the top, or one that is being moved."""

    def __init__(self, parent: int | None, name: str) -> None:
        self.parent = parent
        self.name = name
        self.listed = False  # what is in it is known, and followed
        self.names: dict[str, Found] = {}


class Tree:
    """The tree below one directory, which is watched already."""

    def __init__(self, top: int, list_: List, change: Change) -> None:
        self._top = top
        self._list = list_
        self._change = change
        self._moving: set[int] = set()
        self.folders = {top: Folder(None, "")}
        self.places: dict[int, set[tuple[int, str]]] = {}

    def fill(self) -> None:
        """Watch and list all that there is."""
        for _ in self._adopt([self._top]):
            pass

    def path(self, inode: int) -> str | None:
        """Return where a folder is, from the top; None: it is being moved, or is not ours."""
        parts: list[str] = []
        while inode != self._top:
            folder = self.folders.get(inode)
            if folder is None or folder.parent is None:
                return None
            parts.append(folder.name)
            inode = folder.parent
        return "/".join(reversed(parts))

    def shown(self, event: Shown, name: str) -> Iterator[Shown]:
        """Yield what to print of an event; the tree follows it."""
        kind, inode = event["kind"], event["inode"]
        if kind == "close_write":
            for directory, known in sorted(self.places.get(inode, ())):
                yield from self._told(kind, directory, Found(known, inode, is_directory=False))
            return
        directory, found = event["directory"], Found(name, inode, event["is_directory"])
        if directory not in self.folders:
            return
        if kind in ("create", "moved_to"):
            yield from self._appeared(kind, directory, found)
        elif self.folders[directory].names.get(name) == found:
            yield from self._told(kind, directory, found)
            self._forget(directory, found, moved=kind == "moved_from")

    def settle(self) -> None:
        """Watch no more what was moved away and has not come back since the last time."""
        gone = [inode for inode in self._moving if inode in self.folders]
        self._moving.clear()
        self._leave(gone)

    def moving(self) -> bool:
        """Tell whether something was moved from its place, and has no other yet."""
        return bool(self._moving)

    def _appeared(self, kind: str, directory: int, found: Found) -> Iterator[Shown]:
        names = self.folders[directory].names
        before = names.get(found.name)
        if before == found:
            return
        if before is not None:
            self._forget(directory, before, moved=False)
        self._remember(directory, found)
        yield from self._told(kind, directory, found)
        if not found.is_directory:
            return
        self._place(directory, found)
        yield from self._adopt([n for n, folder in self.folders.items() if not folder.listed])

    def _place(self, directory: int, found: Found) -> None:
        """Let a folder, known or not, be where it was found."""
        self._moving.discard(found.inode)
        folder = self.folders.setdefault(found.inode, Folder(directory, found.name))
        folder.parent, folder.name = directory, found.name

    def _adopt(self, inodes: list[int]) -> Iterator[Shown]:
        """Watch folders, then list them, and so on below; yields what is in them as created."""
        while inodes:
            self._change([inode for inode in inodes if inode != self._top], [])
            below: list[int] = []
            for inode in inodes:
                path = self.path(inode)
                names = self._list(path, inode) if path is not None else None
                if names is None:
                    continue  # it is elsewhere by now: an event will say where
                self.folders[inode].listed = True
                for found in names:
                    before = self.folders[inode].names.get(found.name)
                    if before is not None and before != found:
                        self._forget(inode, before, moved=False)
                    self._remember(inode, found)
                    if before != found:
                        yield from self._told("create", inode, found)
                    if found.is_directory:
                        self._place(inode, found)
                        if not self.folders[found.inode].listed:
                            below.append(found.inode)
            inodes = below

    def _told(self, kind: str, directory: int, found: Found) -> Iterator[Shown]:
        path = self.path(directory)
        if path is not None:
            yield {
                "event": kind,
                "inode": found.inode,
                "is_directory": found.is_directory,
                "directory": path,
                "name": found.name,
            }

    def _remember(self, directory: int, found: Found) -> None:
        self.folders[directory].names[found.name] = found
        self.places.setdefault(found.inode, set()).add((directory, found.name))

    def _forget(self, directory: int, found: Found, *, moved: bool) -> None:
        del self.folders[directory].names[found.name]
        self._unplace(directory, found)
        folder = self.folders.get(found.inode)
        if folder is not None and (folder.parent, folder.name) == (directory, found.name):
            folder.parent = None
            if moved:
                self._moving.add(found.inode)
            else:
                self._leave([found.inode])

    def _unplace(self, directory: int, found: Found) -> None:
        places = self.places[found.inode]
        places.discard((directory, found.name))
        if not places:
            del self.places[found.inode]

    def _leave(self, inodes: list[int]) -> None:
        gone: list[int] = []
        while inodes:
            inode = inodes.pop()
            folder = self.folders.pop(inode)
            gone.append(inode)
            for found in folder.names.values():
                self._unplace(inode, found)
                below = self.folders.get(found.inode)
                if below is not None and (below.parent, below.name) == (inode, found.name):
                    inodes.append(found.inode)
        if gone:
            self._change([], gone)

    def validate(self) -> None:
        """Check the invariants."""
        places: dict[int, set[tuple[int, str]]] = {}
        for number, folder in self.folders.items():
            for found in folder.names.values():
                places.setdefault(found.inode, set()).add((number, found.name))
        assert places == self.places
