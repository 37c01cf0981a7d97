"""`clusterfs scrub`: a running node verifies its whole brick, and repairs what it finds."""

import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from clusterfs import control
from clusterfs.cli.brick import AsJson, Target
from clusterfs.cli.control import find_socket

DAMAGED = 1
_LOOK_S = 0.25
_MIB = 1 << 20

Rate = Annotated[int, typer.Option(metavar="MIB", min=1, help="Read at most so much a second.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when it is done; 1 if damage is left.")]
Stop = Annotated[bool, typer.Option("--stop", help="Stop it; the next one goes on from there.")]
Replicas = Annotated[
    bool, typer.Option("--replicas", help="Compare with the other replicas instead.")
]
Show = Annotated[bool, typer.Option("--status", help="Only tell how far it is.")]


def scrub(  # noqa: PLR0913  (each is a word of its own)
    target: Target = None,
    *,
    rate: Rate = 50,
    wait: Wait = False,
    stop: Stop = False,
    status: Show = False,
    replicas: Replicas = False,
    as_json: AsJson = False,
) -> None:
    """Verify every chunk of a node's brick on its medium; damage is repaired from a replica."""
    socket = find_socket(target)
    if replicas:
        _compare(socket, "stop" if stop else "status" if status else "start", wait, as_json)
        return
    if stop:
        reply = control.ask(socket, "scrub", action="stop")
    elif status:
        reply = control.ask(socket, "scrub")
    else:
        reply = control.ask(socket, "scrub", action="start", rate_bytes=rate * _MIB)
        if wait:
            reply = _watch(socket, shown=not as_json)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(reply)))
    else:
        Console().print(describe(reply), highlight=False, soft_wrap=True)
    if wait and (reply["damage_left"] or reply["failed"]):
        raise SystemExit(DAMAGED)


def _compare(socket: Path, action: str, wait: bool, as_json: bool) -> None:  # noqa: FBT001
    """Compare a node's copies with the other replicas'; with `wait`, 1 if some differed."""
    reply = control.ask(socket, "compare", action=action)
    while wait and reply["running"]:
        time.sleep(_LOOK_S)
        reply = control.ask(socket, "compare")
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(reply)))
    else:
        state = "so far " if reply["running"] else ""
        typer.echo(
            f"{state}{reply['compared']} objects compared, {reply['diverged']} differed and are "
            f"copied anew, {reply['unstable']} changed all the time"
        )
    if wait and reply["diverged"]:
        raise SystemExit(DAMAGED)


def _watch(socket: Any, *, shown: bool) -> dict[str, Any]:
    """Wait until the pass and the repairs that it brought are done; return the last reply."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bars:
        task = bars.add_task("scrub", total=1.0)
        while True:
            reply = control.ask(socket, "scrub")
            bars.update(task, completed=reply["part"] if reply["running"] else 1.0)
            if not reply["running"] and (reply["failed"] or not reply["repairing"]):
                return reply
            time.sleep(_LOOK_S)


def describe(reply: dict[str, Any]) -> str:
    """Return one line for people."""
    text = f"{decimal(reply['checked_bytes'])} verified"
    if reply["running"]:
        text = f"{reply['part']:.0%}, {text}"
        if reply["eta_s"] is not None:
            text += f", {_time(reply['eta_s'])} left at {decimal(reply['rate_bytes'])}/s"
    elif reply["part"]:
        text = f"stopped at {reply['part']:.0%}, {text}"
    else:
        text += f", {reply['passes']} passes so far"
    if reply["failed"]:
        text = f"the brick is read-only: {reply['failed']}; {text}"
    return (
        f"{text}; {reply['damaged']} damaged chunks found by this pass; since the node started "
        f"{reply['damage_healed']} were repaired, {reply['damage_left']} are left"
    )


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
