"""clusterfs-lockdump: the locks of one running node, for people and programs.

Shows the resources mastered here with their queues and holders, this node's own locks, and who
waits for whom.
"""

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from clusterfs import control
from clusterfs.cli.control import find_socket
from clusterfs.cli.main import run

_QUEUES = (("granted", "Granted"), ("converting", "Converting"), ("waiting", "Waiting"))


def decoded(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the raw names in a reply by printable ones."""
    dump = dict(reply)
    for key in ("resources", "locks", "directory"):
        dump[key] = [_named(entry) for entry in dump[key]]
    return dump


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    names = [_printable(entry[key]) for key in ("root", "leaf") if entry.get(key)]
    rest = {key: value for key, value in entry.items() if key not in ("root", "leaf")}
    return {"name": "/".join(names), **rest}


def _printable(encoded: str) -> str:
    """Show a name that is text as it is, any other in hexadecimal."""
    raw = base64.b64decode(encoded)
    if raw.isascii() and (text := raw.decode("ascii")).isprintable():
        return text
    return raw.hex()


def show(dump: Mapping[str, Any], console: Console, *, only_waiting: bool) -> None:
    """Print resources, own locks and waits."""
    members = ", ".join(f"{node} ({start})" for node, start in sorted(dump["members"].items()))
    state = " [red]frozen: a recovery is at work[/]" if dump["frozen"] else ""
    console.print(
        f"node {dump['node']}, incarnation {dump['incarnation']}, epoch {dump['epoch']}; "
        f"members {members}{state}",
        highlight=False,
    )
    resources = [resource for resource in dump["resources"] if not only_waiting or _waits(resource)]
    console.print(_resources(resources))
    if not only_waiting:
        console.print(_own(dump["locks"]))
    for line in _edges(dump["resources"]):
        console.print(line, highlight=False)


def _waits(resource: Mapping[str, Any]) -> bool:
    return bool(resource["converting"] or resource["waiting"])


def _resources(resources: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title="resources mastered here")
    for heading in ("Resource", "Queue", "Node", "Lock", "GR", "RQ", "Waits", "Owner"):
        table.add_column(heading)
    for resource in resources:
        name = resource["name"]
        for queue, title in _QUEUES:
            for copy in resource[queue]:
                waits = f"{copy['wait_s']:.3f} s" if queue != "granted" else ""
                modes = (copy["granted"] or "--", copy["requested"] or "")
                lock = f"{copy['id']:08x}"
                table.add_row(name, title, str(copy["node"]), lock, *modes, waits, copy["owner"])
                name = ""
    return table


def _own(locks: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title="locks of this node")
    for heading in ("Lock", "Resource", "Master", "GR", "RQ", "Blocks", "Owner"):
        table.add_column(heading)
    for lock in locks:
        table.add_row(
            f"{lock['id']:08x}",
            lock["name"],
            str(lock["master"] or "-"),
            lock["mode"] or "--",
            lock["requested"] or "",
            lock["blocked_for"] or "",
            lock["owner"],
        )
    return table


def _edges(resources: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Say who waits for whom: a waiter for every holder of another node."""
    for resource in resources:
        for waiter in [*resource["converting"], *resource["waiting"]]:
            holders = {copy["node"] for copy in [*resource["granted"], *resource["converting"]]}
            for holder in sorted(holders - {waiter["node"]}):
                yield (
                    f"node {waiter['node']} waits for {waiter['requested']} on {resource['name']}: "
                    f"node {holder} holds it"
                )


def _lockdump(
    target: Annotated[
        str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    only_waiting: Annotated[
        bool, typer.Option("--waiters", help="Only resources somebody waits for.")
    ] = False,
) -> None:
    """Show the locks of a running node.

    Exit code: 0 shown, 1 the node does not answer, 2 wrong usage.
    """
    dump = decoded(control.ask(find_socket(target), "locks", timeout_s=30.0)["locks"])
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(dump)))
    else:
        show(dump, Console(), only_waiting=only_waiting)


def main() -> None:
    """Run the command."""
    command: Callable[[], None] = lambda: typer.run(_lockdump)  # noqa: E731
    run(command, "clusterfs-lockdump")


if __name__ == "__main__":
    main()
