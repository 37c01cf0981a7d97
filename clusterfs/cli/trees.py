"""`clusterfs locks`: which node masters a file's locks; send them to another one, pin them."""

import os
import re
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from clusterfs import control
from clusterfs.cli.control import find_socket, mount_at, resolved
from clusterfs.errors import SetupError

app = typer.Typer(no_args_is_help=True, help="Where the locks of a file are mastered.")

Which = Annotated[
    str,
    typer.Argument(metavar="PATH|ROOT", help="A file, or its root as clusterfs-lockdump shows it."),
]
To = Annotated[str, typer.Option("--to", metavar="NODE", help="The node's name.")]
PinTo = Annotated[
    str | None, typer.Option("--to", metavar="NODE", help="The node's name; where it is now.")
]
Via = Annotated[
    str | None,
    typer.Option("--via", metavar="TARGET", help="For a ROOT: a mount, config file or socket."),
]
Patience = Annotated[
    float, typer.Option("--timeout", metavar="S", min=0, help="Wait for it so long.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
_ROOT = re.compile(r"[0-9a-f]{16}")
_LOOK_S = 0.1


@app.command()
def show(which: Which, *, via: Via = None, as_json: AsJson = False) -> None:
    """Tell who masters a file's locks, who asks how often, and whether it is pinned."""
    _print(_Tree(which, via).order("show"), as_json=as_json)


@app.command()
def migrate(
    which: Which, to: To, *, via: Via = None, timeout_s: Patience = 10.0, as_json: AsJson = False
) -> None:
    """Let another node master a file's locks; they stay held, and nobody notices."""
    tree = _Tree(which, via)
    tree.order("migrate", to)
    _print(tree.wait_until_at(to, timeout_s), as_json=as_json)


@app.command()
def pin(
    which: Which,
    to: PinTo = None,
    *,
    via: Via = None,
    timeout_s: Patience = 10.0,
    as_json: AsJson = False,
) -> None:
    """Keep a file's locks mastered by one node, whoever uses it."""
    tree = _Tree(which, via)
    reply = tree.order("pin", to)
    _print(tree.wait_until_at(to or _name(reply, reply["master"]), timeout_s), as_json=as_json)


@app.command()
def unpin(which: Which, *, via: Via = None, as_json: AsJson = False) -> None:
    """Let them go where they are used again."""
    tree = _Tree(which, via)
    tree.order("unpin")
    _print(tree.order("show"), as_json=as_json)


class _Tree:
    """The locks of one file, and the daemon to ask about them."""

    def __init__(self, which: str, via: str | None) -> None:
        self.root, self._socket = _found(which, via)

    def order(self, action: str, node: str | None = None) -> dict[str, Any]:
        """Give an order; return how things were. Raises SetupError."""
        reply = control.ask(
            self._socket,
            "lock_tree",
            timeout_s=control.PATIENCE_S,
            root=self.root,
            action=action,
            **({} if node is None else {"node": node}),
        )
        if not reply["master"]:
            raise SetupError(f"{self.root}: no node has a lock there; it is new at its next use")
        if "refused" in reply:
            pinned = _name(reply, reply["pinned"])
            raise SetupError(f"{self.root}: it is pinned to {pinned}; `clusterfs locks unpin` it")
        return reply | {"root": self.root}

    def wait_until_at(self, node: str, timeout_s: float) -> dict[str, Any]:
        """Wait until the node is the master. Raises SetupError."""
        reply = self.order("show")
        for _ in range(round(timeout_s / _LOOK_S)):
            if _name(reply, reply["master"]) == node:
                break
            time.sleep(_LOOK_S)
            reply = self.order("show")
        else:
            raise SetupError(
                f"{self.root}: still mastered by {_name(reply, reply['master'])} after "
                f"{timeout_s:g} s; it goes as soon as it can, see `clusterfs locks show`"
            )
        return reply


def _found(which: str, via: str | None) -> tuple[str, Path]:
    """Return the root and the socket of a daemon. Raises SetupError."""
    path = Path(which)
    if not os.path.lexists(path) and _ROOT.fullmatch(which):
        return which, find_socket(via)
    try:
        inode = path.lstat().st_ino
    except OSError as failure:
        raise SetupError(f"{which}: {failure.strerror}") from failure
    place = resolved(path)
    for folder in (place, *place.parents):
        if mount_at(folder) is not None:
            return inode.to_bytes(8, "big").hex(), find_socket(via or str(folder))
    raise SetupError(f"{which}: not in a clusterfs that is mounted here")


def _name(reply: dict[str, Any], node: int) -> str:
    return str(reply["names"].get(str(node), f"node {node}"))


def _print(reply: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(reply)))
        return
    text = f"{reply['root']}: mastered by {_name(reply, reply['master'])}, {reply['locks']} locks"
    if reply["pinned"]:
        text += f", pinned to {_name(reply, reply['pinned'])}"
    if reply["moving_to"]:
        text += f", moving to {_name(reply, reply['moving_to'])}"
    rates = [f"{_name(reply, int(n))} {rate:g}" for n, rate in reply["rates"].items() if rate]
    if rates:
        text += f"; requests a second: {', '.join(rates)}"
    typer.echo(text)
