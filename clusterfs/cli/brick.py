"""The commands about one node's brick: `clusterfs tune`, `clusterfs df`."""

from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from clusterfs import control
from clusterfs.cli.control import find_socket

Target = Annotated[
    str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Executors = Annotated[
    int, typer.Argument(metavar="N", min=1, max=64, help="How many threads write the log.")
]

tune = typer.Typer(no_args_is_help=True, help="Change a running node, until it ends.")


@tune.command("flush-executors")
def flush_executors(count: Executors, target: Target = None, *, as_json: AsJson = False) -> None:
    """Write the log with N threads from now on; more pay when the disk's latency is high."""
    reply = control.ask(find_socket(target), "tune", flush_executors=count)
    show(reply, f"{reply['flush_executors']} flush executors", as_json=as_json)


def show(reply: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a reply for programs, or one line for people."""
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(reply)))
    else:
        Console().print(text, highlight=False, soft_wrap=True)
