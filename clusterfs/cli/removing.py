"""Waiting for a node to be emptied and to leave, with progress."""

import time
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn

from clusterfs import control
from clusterfs.errors import SetupError

_LOOK_S = 0.5
_DEATH_S = 60.0


def state_of(socket: Path, name: str) -> str:
    """Return "up", "leaving" or "away". Raises SetupError."""
    return str(_node(_nodes(socket), name)["state"])


def gone(socket: Path, name: str) -> bool:
    """Tell whether a node is away; one that has just died needs a while. Raises SetupError."""
    deadline_s = time.monotonic() + _DEATH_S  # noqa: TID251  (a shell reads clocks)
    while state_of(socket, name) != "away":
        if time.monotonic() > deadline_s:  # noqa: TID251
            return False
        time.sleep(_LOOK_S)
    return True


def emptied(socket: Path, name: str, *, wait: bool) -> bool:
    """Wait until a retiring node holds nothing and has left; False: it has not, and we do not wait.

    Raises SetupError.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rest]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(f"emptying {name}", total=None, rest="")
        total = 0
        while True:
            nodes = _nodes(socket)
            held = _node(nodes, name)["held"]
            total = max(total, held)
            bars.update(task, total=total or 1, completed=total - held, rest=remaining(nodes))
            if not held or not wait:
                break
            time.sleep(_LOOK_S)
    if held:
        typer.echo(f"{name} holds {held} groups still: the same command tells when it is empty")
        return False
    if state_of(socket, name) != "away":
        typer.echo(f"{name} holds nothing any more: unmount it, or end its `clusterfs serve`")
        while wait and state_of(socket, name) != "away":
            time.sleep(_LOOK_S)
    return state_of(socket, name) == "away"


def remaining(nodes: list[dict[str, Any]]) -> str:
    """Return what the resyncs that run have copied, and how long they will take."""
    running = [node["resync"] for node in nodes if node["resync"]]
    if not running:
        return ""
    text = f"{decimal(sum(each['pulled_bytes'] for each in running))} copied"
    left = [each["eta_s"] for each in running if each["eta_s"] is not None]
    return f"{text}, {max(left):.0f} s left" if left else text


def _nodes(socket: Path) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = control.ask(socket, "members")["nodes"]
    return nodes


def _node(nodes: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for node in nodes:
        if node["name"] == name:
            return node
    raise SetupError(f"no node is called {name}; there are: {', '.join(n['name'] for n in nodes)}")
