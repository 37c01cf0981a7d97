"""`clusterfs upgrade`: a running node gets another daemon; programs on its mount notice a pause."""

import os
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from clusterfs import config, control
from clusterfs.cli.control import find_socket
from clusterfs.errors import NotAnswering, SetupError
from clusterfs.handover import PATIENCE_S

_ANSWER_S = PATIENCE_S + 10
_START_S = 120.0
_POLL_S = 0.1


def upgrade(
    target: Annotated[
        str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Replace a node's daemon by one of the version that is installed now.

    Open files stay open: programs wait for some seconds. Exit code 0 when the new daemon serves.
    """
    socket = find_socket(target)
    before = control.ask(socket, "status")
    config.load(Path(before["config"]))  # what the new daemon would refuse is refused now
    former = control.ask(socket, "hand_over", timeout_s=_ANSWER_S)["pid"]
    with Console(stderr=True).status("waiting for the new daemon"):
        after = _wait_replaced(socket, former)
    if as_json:
        typer.echo(msgspec.json.encode({"former_pid": former, **after}))
        return
    typer.echo(f"{after['name']} serves again: process {after['pid']} instead of {former}")


def _wait_replaced(socket: Path, former: int) -> dict[str, Any]:
    deadline_s = time.monotonic() + _START_S  # noqa: TID251  (a shell reads clocks)
    while time.monotonic() < deadline_s:  # noqa: TID251
        try:
            status = control.ask(socket, "status", timeout_s=control.LOOK_S)
        except NotAnswering:
            status = {}
        if status.get("serving") and status["pid"] != former:
            return {"name": status["name"], "pid": status["pid"]}
        time.sleep(_POLL_S)
    ended = "" if _runs(former) else f"process {former} has ended, and "
    raise SetupError(f"{ended}no new daemon serves after {_START_S:g} s; see the node's log")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
