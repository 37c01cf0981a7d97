"""Locks, waits and counters as tables on a terminal."""

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table

from clusterfs.cli.locks.file_locks import waits_for_ranges
from clusterfs.cli.locks.picture import Node, Own, Picture, Resource, Use, printable
from clusterfs.cli.locks.statistics import costs
from clusterfs.cli.locks.waits import Wait, names_of, uses_by_name, waits

_TITLES = {"granted": "Granted", "converting": "Converting", "waiting": "Waiting"}
_MOST = 1000  # rows of one table; `--format` has no limit


def show(picture: Picture, console: Console) -> None:
    """Print resources and own locks of every node, then who waits."""
    for node in picture.nodes:
        console.print(_headline(node), highlight=False)
        _print(console, _resources(node), "resources mastered here", _RESOURCES)
        _print(console, _own(node), "locks of this node", _OWN)
    show_silent(picture, console)
    show_waiters(picture, console)


def show_waiters(picture: Picture, console: Console) -> None:
    """Print who waits how long for what because of whom, worst first."""
    names = names_of(picture)
    found = [*waits(picture), *waits_for_ranges(picture)]
    found.sort(key=lambda wait: -wait.wait_s)
    rows = [_waiter(wait, names) for wait in found]
    if rows:
        _print(console, iter(rows), "who waits", _WAITERS)
    else:
        console.print("nobody waits")
    show_silent(picture, console)


def show_silent(picture: Picture, console: Console) -> None:
    """Print which members are missing in the picture."""
    for silent in picture.silent:
        name = silent.name or f"node {silent.node}"
        console.print(f"[red]{name} is missing here:[/] {silent.reason}", highlight=False)


def show_statistics(picture: Picture, console: Console) -> None:
    """Print what the lock traffic cost."""
    for node in picture.nodes:
        table = Table(title=f"lock messages of {node.name or f'node {node.node}'}")
        for heading in ("Message", "Sent", "Received"):
            table.add_column(heading, justify="left" if heading == "Message" else "right")
        for kind in sorted({*node.sent, *node.received}):
            table.add_row(kind, str(node.sent.get(kind, 0)), str(node.received.get(kind, 0)))
        console.print(table)
        for line in costs(node):
            console.print(line, highlight=False)
    show_silent(picture, console)


_RESOURCES = ("Resource", "Queue", "Node", "Lock", "GR", "RQ", "Waits", "Owner")
_OWN = ("Lock", "Resource", "Path", "Master", "GR", "RQ", "Blocks", "Use")
_WAITERS = ("Node", "Pid", "Command", "Does", "Waits", "For", "Lock", "Because of")


def _print(
    console: Console, rows: Iterator[tuple[str, ...]], title: str, headings: tuple[str, ...]
) -> None:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    more = 0
    for row in rows:
        if table.row_count < _MOST:
            table.add_row(*row)
        else:
            more += 1
    console.print(table)
    if more:
        console.print(f"{more:,} more; --format json shows all")


def _headline(node: Node) -> str:
    members = ", ".join(f"{other} ({start})" for other, start in sorted(node.members.items()))
    state = " [red]frozen: a recovery is at work[/]" if node.frozen else ""
    if node.lost:
        state = " [red]out of the cluster: its locks are void[/]"
    return (
        f"node {node.node}, incarnation {node.incarnation}, epoch {node.epoch}; "
        f"members {members}{state}"
    )


def _resources(node: Node) -> Iterator[tuple[str, ...]]:
    for resource in node.resources:
        yield from _queues(resource)


def _queues(resource: Resource) -> Iterator[tuple[str, ...]]:
    name = printable(resource.root, resource.leaf)
    for queue, copy in resource.copies():
        waited = "" if queue == "granted" else f"{copy.wait_s:.3f} s"
        modes = (copy.granted or "--", copy.requested or "")
        yield (
            name,
            _TITLES[queue],
            str(copy.node),
            f"{copy.id:08x}",
            *modes,
            waited,
            copy.owner,
        )
        name = ""


def _own(node: Node) -> Iterator[tuple[str, ...]]:
    uses = uses_by_name(node)
    for own in node.locks:
        use = uses.get((own.root, own.leaf), Use(b""))
        yield (
            f"{own.id:08x}",
            printable(own.root, own.leaf),
            use.path,
            str(own.master or "-"),
            own.mode or "--",
            own.requested or "",
            own.blocked_for or "",
            _use(own, use),
        )


def _use(own: Own, use: Use) -> str:
    if use.revoking:
        return "is given up"
    if use.users < 0:
        return "1 alone"
    count = use.users + use.pins
    return f"{count} in use" if count else own.owner


def _waiter(wait: Wait, names: Mapping[int, str]) -> tuple[str, ...]:
    because = "; ".join(
        f"{_name(blocker.party.node, names)} {blocker.party.label} {blocker.why}"
        f" {blocker.mode or ''}".rstrip()
        for blocker in wait.blockers
    )
    return (
        _name(wait.party.node, names),
        str(wait.pid or ""),
        wait.command,
        wait.operation,
        f"{wait.wait_s:.3f} s",
        f"{wait.held or '--'} to {wait.wanted}" if wait.held else wait.wanted,
        wait.path or printable(*wait.name),
        because,
    )


def _name(node: int, names: Mapping[int, str]) -> str:
    return names.get(node, f"node {node}")
