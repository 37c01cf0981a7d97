"""The commands about one node's brick: `clusterfs tune`, `clusterfs df`."""

import enum
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from clusterfs import control
from clusterfs.cli.control import find_socket

Target = Annotated[
    str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Executors = Annotated[
    int, typer.Argument(metavar="N", min=1, max=64, help="How many threads write the log.")
]

_ROWS = (
    ("logical", "in files, holes not counted"),
    ("shared", "of it, saved because equal blocks are stored once"),
    ("packed", "of it, saved by compression"),
    ("live", "what is left: what the data takes"),
    ("free", "can still be written"),
    ("total", "live + free"),
    ("reserve", "kept empty, so that deleting and cleaning work when nothing is free"),
    ("capacity", "total + reserve: what the brick may take of its filesystem now"),
    ("dead", "overwritten or deleted; in free and reserve until the cleaner gives it back"),
    ("allocated", "preallocated on the filesystem so far"),
)


class Codec(enum.Enum):
    """How cold data is compressed."""

    OFF = "off"
    LZ4 = "lz4"
    ZSTD = "zstd"


tune = typer.Typer(no_args_is_help=True, help="Change a running node, until it ends.")


@tune.command("flush-executors")
def flush_executors(count: Executors, target: Target = None, *, as_json: AsJson = False) -> None:
    """Write the log with N threads from now on; more pay when the disk's latency is high."""
    reply = control.ask(find_socket(target), "tune", flush_executors=count)
    show(reply, f"{reply['flush_executors']} flush executors", as_json=as_json)


@tune.command()
def compression(codec: Codec, target: Target = None, *, as_json: AsJson = False) -> None:
    """Compress what the cleaner moves with off, lz4 or zstd from now on; what is stored stays."""
    reply = control.ask(find_socket(target), "tune", compression=codec.value)
    show(reply, f"compression {reply['compression']}", as_json=as_json)


@tune.command("resync-rate")
def resync_rate(
    mib: Annotated[int, typer.Argument(metavar="MIB", min=0, help="0: as fast as it goes.")],
    target: Target = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Let a resync of this node copy at most MIB a second from now on."""
    reply = control.ask(find_socket(target), "tune", resync_mib_s=mib)
    rate = reply["resync_mib_s"]
    text = f"resync at most {rate} MiB a second" if rate else "resync as fast as it goes"
    show(reply, text, as_json=as_json)


def df(target: Target = None, *, as_json: AsJson = False) -> None:
    """Show where the room of a node's brick went."""
    reply = control.ask(find_socket(target), "df")
    table = Table.grid(padding=(0, 2))
    for name, text in _ROWS:
        table.add_row(name, decimal(reply[f"{name}_bytes"]), text)
    show(reply, table, as_json=as_json)


def show(reply: dict[str, Any], text: str | Table, *, as_json: bool) -> None:
    """Print a reply for programs, or `text` for people."""
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(reply)))
    else:
        Console().print(text, highlight=False, soft_wrap=True)
