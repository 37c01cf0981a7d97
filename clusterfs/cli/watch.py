"""`clusterfs watch`: the changes of a directory's names, made on any node, as they happen."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from clusterfs import control
from clusterfs.cli.control import socket_for
from clusterfs.cli.watch_tree import Found, Tree
from clusterfs.errors import SetupError

_PATIENCE_S = 60.0


def watch(
    directory: Annotated[Path, typer.Argument(help="A directory on a clusterfs.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    recursive: Annotated[bool, typer.Option(help="Watch all directories below, too.")] = False,
) -> None:
    """Print what is created, closed after writing, renamed and deleted in a directory, anywhere.

    The first line, `watching`, says that from now on nothing is left out; `overflow` says that
    something may have been: look at the directory again. Ends when the directory is gone.
    """
    if not directory.is_dir():
        raise SetupError(f"{directory} is no directory; watch the one that it is in")
    number, socket = directory.stat().st_ino, socket_for(directory)
    begun = control.ask(socket, "watch", timeout_s=_PATIENCE_S, directory=number)["watch"]
    try:
        follow = _follow_tree if recursive else _follow
        follow(directory, socket, begun, as_json=as_json)
    except KeyboardInterrupt:
        pass
    finally:
        control.ask(socket, "watch_end", timeout_s=_PATIENCE_S, watch=begun)


def _follow(directory: Path, socket: Path, begun: int, *, as_json: bool) -> None:
    names = _names(directory)
    _say({"event": "watching", "name": ""}, as_json=as_json)
    while True:
        reply = control.ask(socket, "watch_next", timeout_s=_PATIENCE_S, watch=begun)
        for event in reply["events"]:
            for shown in _shown(event, names):
                _say(shown, as_json=as_json)
        if reply["overflow"]:
            _say({"event": "overflow", "name": "", "why": reply["overflow"]}, as_json=as_json)
            names = _names(directory)
        if not reply["events"] and not directory.is_dir():
            return


def _follow_tree(directory: Path, socket: Path, begun: int, *, as_json: bool) -> None:
    def change(add: list[int], remove: list[int]) -> None:
        if add or remove:
            lists = {"watch": begun, "add": add, "remove": remove}
            control.ask(socket, "watch_change", timeout_s=_PATIENCE_S, **lists)

    tree = Tree(directory.stat().st_ino, partial(_list, directory), change)
    tree.fill()
    _say({"event": "watching", "name": ""}, as_json=as_json)
    while True:
        was_moving = tree.moving()
        reply = control.ask(socket, "watch_next", timeout_s=_PATIENCE_S, watch=begun)
        for event in reply["events"]:
            for shown in tree.shown(event, os.fsdecode(bytes.fromhex(event["raw"]))):
                _say(shown, as_json=as_json)
        if was_moving:
            tree.settle()
        if reply["overflow"]:
            _say({"event": "overflow", "name": "", "why": reply["overflow"]}, as_json=as_json)
            change([], [inode for inode in tree.folders if inode != directory.stat().st_ino])
            tree = Tree(directory.stat().st_ino, partial(_list, directory), change)
            tree.fill()
        if not reply["events"] and not directory.is_dir():
            return


def _list(top: Path, path: str, inode: int) -> list[Found] | None:
    """Return the names of a directory below the top, if it is there still."""
    try:
        folder = os.open(top / path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        if os.fstat(folder).st_ino != inode:
            return None
        with os.scandir(folder) as entries:
            return [
                Found(entry.name, entry.inode(), entry.is_dir(follow_symlinks=False))
                for entry in entries
            ]
    finally:
        os.close(folder)


def _names(directory: Path) -> dict[str, int]:
    with os.scandir(directory) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _shown(event: dict[str, Any], names: dict[str, int]) -> list[dict[str, Any]]:
    """Return what to print of an event, and keep the names up to date."""
    kind, inode = event["kind"], event["inode"]
    shown = {"event": kind, "inode": inode, "is_directory": event["is_directory"]}
    if kind == "close_write":
        return [shown | {"name": name} for name, known in names.items() if known == inode]
    name = os.fsdecode(bytes.fromhex(event["raw"]))
    if kind in ("create", "moved_to"):
        names[name] = inode
    elif names.get(name) == inode:
        del names[name]
    return [shown | {"name": name}]


def _say(shown: dict[str, Any], *, as_json: bool) -> None:
    for word in {"name", "directory"} & set(shown):
        shown[word] = os.fsencode(shown[word]).decode("utf-8", "backslashreplace")
    if as_json:
        typer.echo(msgspec.json.encode(shown).decode())
    else:
        name = "/".join(filter(None, (shown.get("directory"), shown["name"])))
        typer.echo(" ".join(filter(None, (shown["event"], name, shown.get("why", "")))))
