"""`clusterfs top`: what a node does right now, once a second."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table

from clusterfs import control
from clusterfs.cli.control import find_socket

_RATES = (  # heading, where it is, whether it counts bytes
    ("reads", "filesystem.reads_fast", False),
    ("reads that waited", "filesystem.reads_slow", False),
    ("writes", "filesystem.writes_fast", False),
    ("writes that waited", "filesystem.writes_slow", False),
    ("written back", "filesystem.flushed_bytes", True),
    ("transactions", "filesystem.transactions", False),
    ("locks granted", "filesystem.lock_grants", False),
    ("locks given up", "filesystem.lock_revokes", False),
    ("reads of this brick", "volume.reads_local", False),
    ("reads of others' bricks", "volume.reads_remote", False),
    ("log written", "store.log_bytes_written", True),
    ("log syncs", "store.syncs", False),
)
_LEVELS = (
    ("open handles", "filesystem.handles", False),
    ("locks held", "filesystem.locks_held", False),
    ("dirty", "filesystem.dirty_bytes", True),
    ("stalled requests", "filesystem.stalled", False),
    ("outstanding transactions", "volume.outstanding", False),
)


def top(
    target: Annotated[
        str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
    ] = None,
    *,
    count: Annotated[int, typer.Option(help="Stop after so many; 0: at Ctrl-C.", min=0)] = 0,
    interval_s: Annotated[float, typer.Option("--interval", help="Seconds.", min=0.1)] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show what a node does right now: rates, and what is under way."""
    socket = find_socket(target)
    status, before, before_s = *_asked(socket), _now_s()
    live = None if as_json else Live(console=Console(), screen=count == 0)
    shown = 0
    if live:
        live.start()
    try:
        while not count or shown < count:
            time.sleep(interval_s)
            status, after, after_s = *_asked(socket), _now_s()
            picture = rates(before, after, after_s - before_s)
            if live:
                live.update(_drawn(status, picture), refresh=True)
            else:
                typer.echo(msgspec.json.encode({"name": status["name"], **picture}))
            before, before_s, shown = after, after_s, shown + 1
    except KeyboardInterrupt:
        return
    finally:
        if live:
            live.stop()


def rates(
    before: Mapping[str, Any], after: Mapping[str, Any], passed_s: float
) -> dict[str, dict[str, float]]:
    """Return what happened per second between two statistics, and how much there is now."""
    passed_s = max(passed_s, 1e-3)
    return {
        "per_second": {
            path: max(0.0, _at(after, path) - _at(before, path)) / passed_s for _, path, _ in _RATES
        },
        "now": {path: _at(after, path) for _, path, _ in _LEVELS},
    }


def _asked(socket: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    asked = partial(control.ask, socket, timeout_s=control.LOOK_S)
    return asked("status"), asked("statistics")["statistics"]


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251  (a shell reads clocks)


def _at(statistics: Mapping[str, Any], path: str) -> float:
    part, _, key = path.partition(".")
    return float(statistics[part].get(key, 0))  # 0: a node without a brick


def _drawn(status: Mapping[str, Any], picture: Mapping[str, Mapping[str, float]]) -> Group:
    head = Table.grid(padding=(0, 2))
    head.add_row(
        f"[bold]{status['name']}[/]",
        f"epoch {status['epoch']}",
        f"lease {status['lease_left_s']:.1f} s",
        "in sync" if status["synced"] else "[yellow]not in sync[/]",
    )
    for finding in status["codes"]:
        colour = "red" if finding["severity"] == "error" else "yellow"
        head.add_row(f"[{colour}]{finding['code']}[/]", finding["text"])
    table = Table()
    for heading in ("", "a second", "", "now"):
        table.add_column(heading, justify="right" if heading else "left")
    for number in range(len(_RATES)):
        row = _cells(_RATES[number], picture["per_second"])
        more = _cells(_LEVELS[number], picture["now"]) if number < len(_LEVELS) else ("", "")
        table.add_row(*row, *more)
    return Group(head, table)


def _cells(line: tuple[str, str, bool], values: Mapping[str, float]) -> tuple[str, str]:
    heading, path, counts_bytes = line
    value = values[path]
    return heading, decimal(round(value)) if counts_bytes else f"{value:.0f}"
