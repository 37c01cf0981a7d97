"""The tree of `clusterfs watch --recursive`, against random changes told late."""

from collections.abc import Iterable
from random import Random

import pytest

from clusterfs.cli.watch_tree import Found, Shown, Tree

TOP = 1


class Model:
    """Directories and names; events wait until they are fetched, and only of what is watched."""

    def __init__(self, seed: int) -> None:
        self.pick = Random(seed)
        self.folders: dict[int, dict[str, Found]] = {TOP: {}}
        self.watched = {TOP}
        self.events: list[Shown] = []
        self._next = TOP + 1

    def change(self, add: list[int], remove: list[int]) -> None:
        self.watched |= set(add)
        self.watched -= set(remove)

    def list(self, path: str, inode: int) -> Iterable[Found] | None:
        here = TOP
        for part in filter(None, path.split("/")):
            found = self.folders[here].get(part)
            if found is None or not found.is_directory:
                return None
            here = found.inode
        return list_of(self.folders[here]) if here == inode else None

    def tell(self, kind: str, directory: int, found: Found) -> None:
        if directory in self.watched:
            about = {"inode": found.inode, "is_directory": found.is_directory}
            self.events.append({"kind": kind, "directory": directory, "name": found.name, **about})

    def step(self) -> None:
        directory = self.pick.choice(list(self.folders))
        names, name = self.folders[directory], self.pick.choice("abc")
        found = names.get(name)
        if found is None:
            found = names[name] = Found(name, self._next, self.pick.random() < 0.6)
            self._next += 1
            if found.is_directory:
                self.folders[found.inode] = {}
            self.tell("create", directory, found)
        elif found.is_directory and self.folders[found.inode]:
            self.move(directory, found)
        else:
            del names[name]
            self.folders.pop(found.inode, None)
            self.tell("delete", directory, found)

    def move(self, directory: int, found: Found) -> None:
        target = self.pick.choice(list(self.folders))
        if self.is_below(target, found.inode) or found.name in self.folders[target]:
            return
        del self.folders[directory][found.name]
        self.folders[target][found.name] = found
        self.tell("moved_from", directory, found)
        self.tell("moved_to", target, found)

    def is_below(self, inode: int, above: int) -> bool:
        return inode == above or any(
            self.is_below(inode, found.inode)
            for found in self.folders.get(above, {}).values()
            if found.is_directory
        )


def list_of(names: dict[str, Found]) -> list[Found]:
    return list(names.values())


@pytest.mark.parametrize("seed", range(60))
def test_told_names_end_as_what_is_there(seed: int) -> None:
    model = Model(seed)
    for _ in range(10):
        model.step()
    tree = Tree(TOP, model.list, model.change)
    model.events.clear()
    tree.fill()
    for _ in range(60):
        for _ in range(model.pick.randrange(4)):
            model.step()
        was_moving = tree.moving()
        events, model.events = model.events, []
        for event in events:
            for shown in tree.shown(event, event["name"]):
                assert shown["event"] in ("create", "delete", "moved_from", "moved_to")
        if was_moving:
            tree.settle()
        tree.validate()
    while model.events:
        events, model.events = model.events, []
        for event in events:
            list(tree.shown(event, event["name"]))
    assert {inode: folder.names for inode, folder in tree.folders.items()} == model.folders
    assert model.watched >= set(model.folders)
