"""clusterfs-lockdump: who holds, wants and waits for which lock, for people and programs.

Asks a daemon over its admin socket, which answers from memory: nothing here takes a lock or touches
a mount, so it works while everything else waits. What a stopped node knows is missing, and said to
be.
"""

import enum
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from clusterfs import control
from clusterfs.cli.control import find_socket
from clusterfs.cli.locks import fsdlm, graph, ocfs2, tables
from clusterfs.cli.locks.picture import Node, Picture, read_picture, with_names
from clusterfs.cli.main import run
from clusterfs.errors import SetupError

ANSWER_S = 5.0  # until a daemon is taken for stopped
_DESCRIBED_S = 120.0  # one that runs may have millions of locks to describe
_FILE_COLUMNS = 200  # of a table that goes to no terminal


class Format(enum.StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"
    LOCKDUMP = "lockdump"
    LOCKDEBUG = "lockdebug"
    FS_LOCKS = "fs_locks"
    DLM_LOCKS = "dlm_locks"


_FILES: dict[Format, Callable[[Node], str]] = {
    Format.LOCKDUMP: fsdlm.lockdump,
    Format.LOCKDEBUG: fsdlm.lockdebug,
    Format.FS_LOCKS: ocfs2.fs_locks,
    Format.DLM_LOCKS: ocfs2.dlm_locks,
}


class View(msgspec.Struct, frozen=True):
    """What of it to print, and how."""

    form: Format = Format.TABLE
    waiters: bool = False
    graph: bool = False
    dot: bool = False
    statistics: bool = False
    node: int | None = None

    @property
    def only_busy(self) -> bool:
        """Whether what nobody waits for is not shown, and need not be asked for."""
        return self.form is Format.TABLE and (
            self.waiters or self.graph or self.dot or self.statistics
        )


def fetch(target: str | None, *, cluster: bool, only_busy: bool = False) -> dict[str, Any]:
    """Return what a daemon says, names made printable. Raises NotAnswering, SetupError."""
    request = "cluster_locks" if cluster else "locks"
    socket = find_socket(target)
    control.ask(socket, "ping", timeout_s=ANSWER_S)
    reply = control.ask(socket, request, timeout_s=_DESCRIBED_S, only_busy=only_busy)
    if not cluster:
        return with_names(reply["locks"])
    return {
        "nodes": [with_names(node) for node in reply["nodes"]],
        "silent": reply["silent"],
    }


def load(path: Path) -> dict[str, Any]:
    """Return what `--format json` wrote into a file. Raises SetupError."""
    try:
        value = msgspec.json.decode(path.read_bytes())
        read_picture(value)
    except OSError as failure:
        raise SetupError(f"{path}: {failure.strerror}") from failure
    except msgspec.MsgspecError as failure:
        raise SetupError(f"{path}: not what --format json writes ({failure})") from failure
    assert isinstance(value, dict)
    return value


def render(value: dict[str, Any], view: View, console: Console) -> None:
    """Print one description. Raises SetupError if the view does not fit it."""
    if view.form is Format.JSON:
        console.file.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
        return
    picture = _chosen(read_picture(value), view.node)
    if view.form in _FILES:
        console.file.write(_FILES[view.form](_only(picture)))
    elif view.dot:
        console.file.write(graph.dot(picture))
    elif view.graph:
        console.file.write(graph.text(picture))
        tables.show_silent(picture, console)
    elif view.waiters:
        tables.show_waiters(picture, console)
    elif view.statistics:
        tables.show_statistics(picture, console)
    else:
        tables.show(picture, console)


def _chosen(picture: Picture, node: int | None) -> Picture:
    if node is None:
        return picture
    chosen = tuple(found for found in picture.nodes if found.node == node)
    if not chosen:
        known = ", ".join(str(found.node) for found in picture.nodes) or "none"
        raise SetupError(f"node {node} is not in the picture; there are: {known}")
    return Picture(chosen)


def _only(picture: Picture) -> Node:
    if len(picture.nodes) != 1:
        known = ", ".join(str(found.node) for found in picture.nodes) or "none"
        raise SetupError(f"this format is for one node; choose one with --node: {known}")
    return picture.nodes[0]


def _lockdump(  # noqa: PLR0913  typer declares options as parameters
    target: Annotated[
        str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
    ] = None,
    *,
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    waiters: Annotated[
        bool, typer.Option("--waiters", help="Who waits how long because of whom, worst first.")
    ] = False,
    blocks: Annotated[
        bool, typer.Option("--graph", help="Who blocks whom; cycles are marked.")
    ] = False,
    dot: Annotated[bool, typer.Option("--dot", help="The same for Graphviz.")] = False,
    statistics: Annotated[bool, typer.Option("--stats", help="Messages per operation.")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="All nodes in one picture.")] = False,
    node: Annotated[
        int | None, typer.Option("--node", help="Of several nodes, only this one.")
    ] = None,
    offline: Annotated[
        Path | None, typer.Option("--offline", help="Read a file that --format json wrote.")
    ] = None,
    watch: Annotated[
        float | None, typer.Option("--watch", min=0.1, help="Print anew every so many seconds.")
    ] = None,
) -> None:
    """Show the locks of a running node, or of all.

    Exit code: 0 shown, 1 the node does not answer, 2 wrong usage.
    """
    if as_json:
        form = Format.JSON
    view = View(form, waiters, blocks, dot, statistics, node)
    console = Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
    if offline is not None:
        render(load(offline), view, console)
        return
    render(fetch(target, cluster=cluster, only_busy=view.only_busy), view, console)
    while watch is not None:
        sys.stdout.flush()
        time.sleep(watch)
        value = fetch(target, cluster=cluster, only_busy=view.only_busy)
        console.clear()
        render(value, view, console)


def main() -> None:
    """Run the command."""
    command: Callable[[], None] = lambda: typer.run(_lockdump)  # noqa: E731
    run(command, "clusterfs-lockdump")


if __name__ == "__main__":
    main()
