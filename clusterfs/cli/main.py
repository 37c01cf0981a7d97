"""The `clusterfs` command.

Exit codes: 0 it is so, 1 it is not (one line on stderr says why), 2 wrong usage; those of fsck are
its own.
"""

import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from clusterfs import control
from clusterfs.cli import brick, cluster, debug, quota, snapshot, tables, tls, trees
from clusterfs.cli.control import find_socket
from clusterfs.cli.dev import MOST_NODES, Cluster
from clusterfs.cli.doctor import doctor
from clusterfs.cli.fsck import WRONG_USAGE, fsck
from clusterfs.cli.mount import mount
from clusterfs.cli.scrub import scrub
from clusterfs.cli.top import top
from clusterfs.cli.upgrade import upgrade
from clusterfs.cli.watch import watch
from clusterfs.errors import SetupError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
dev = typer.Typer(no_args_is_help=True, help="A whole cluster on this machine.")
app.add_typer(dev, name="dev")
app.add_typer(cluster.app, name="cluster")
app.add_typer(brick.tune, name="tune")
app.add_typer(debug.app, name="debug")
app.add_typer(tls.app, name="tls")
app.add_typer(trees.app, name="locks")
app.command()(brick.df)
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(quota.app, name="quota")
app.command()(snapshot.clone)
app.command()(fsck)
app.command()(doctor)
app.command()(scrub)
app.command()(upgrade)
app.command()(top)
app.command()(watch)

Folder = Annotated[Path, typer.Option("--dir", help="Where the cluster lives.")]
NodeName = Annotated[str, typer.Argument(metavar="nK", help="Which node.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Target = Annotated[
    str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
]
HERE = Path("clusterfs-dev")
_WRONG_USAGE = 2
_CLEANING = {"clone", "snapshot"}  # SIGTERM ends them as Ctrl-C does: what is half done goes


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _say_version(wanted: bool) -> None:  # noqa: FBT001  (typer calls it so)
    if wanted:
        typer.echo(f"clusterfs {version('clusterfs')}")
        raise typer.Exit


@app.callback()
def _clusterfs(
    context: typer.Context,
    *,
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Show it.")
    ] = False,
) -> None:
    """clusterfs: a POSIX cluster filesystem in user space."""
    del show_version  # the callback has said it
    if context.invoked_subcommand in _CLEANING:
        signal.signal(signal.SIGTERM, _end)


@app.command()
def status(target: Target = None, *, as_json: AsJson = False) -> None:
    """Show a running node: its cluster, its lease, its store."""
    _show(
        control.ask(find_socket(target), "status", timeout_s=control.LOOK_S),
        tables.status,
        as_json=as_json,
    )


@app.command()
def serve(
    source: Annotated[Path, typer.Argument(help="The node's config file.")],
    log: Annotated[Path | None, typer.Option(help="Where the log goes.")] = None,
    pidfile: Annotated[Path | None, typer.Option(help="Where the process is recorded.")] = None,
    *,
    foreground: Annotated[bool, typer.Option("-f", help="Stay in the foreground.")] = False,
) -> None:
    """Serve a node's brick without mounting the volume here; SIGTERM ends it."""
    words = [f"log={log}"] if log else []
    words += [f"pidfile={pidfile}"] if pidfile else []
    raise typer.Exit(mount(source, None, words, foreground=foreground))


@dev.command()
def up(
    nodes: Annotated[
        int | None, typer.Option(min=1, max=MOST_NODES, help="How many nodes; 3 at first.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, max=16, help="Copies of all data; 3.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Who orders the views of new nodes; an SQLite file in DIR.")
    ] = None,
    folder: Folder = HERE,
    *,
    encrypt: Annotated[
        bool, typer.Option("--tls", help="Let new nodes talk inside TLS; makes an authority.")
    ] = False,
) -> None:
    """Start N daemons, mount DIR/n1 ... DIR/nN, wait until all are in sync."""
    cluster = _cluster(folder)
    cluster.up(nodes, replicas, provider, tls=encrypt)
    points = ", ".join(str(node.mount) for node in cluster.nodes)
    Console().print(f"mounted and in sync: {points}", highlight=False, soft_wrap=True)


@dev.command("status")
def dev_status(folder: Folder = HERE, *, as_json: AsJson = False) -> None:
    """Show every node of the cluster."""
    _show(_cluster(folder).status(), tables.cluster, as_json=as_json)


@dev.command()
def kill(node: NodeName, folder: Folder = HERE) -> None:
    """End a node's daemon with SIGKILL."""
    _cluster(folder).kill(node)


@dev.command()
def start(node: NodeName, folder: Folder = HERE) -> None:
    """Start a node again and wait until it is in sync."""
    _cluster(folder).start(node)


@dev.command()
def pause(node: NodeName, folder: Folder = HERE) -> None:
    """Stop a node's daemon with SIGSTOP."""
    _cluster(folder).pause(node)


@dev.command()
def resume(node: NodeName, folder: Folder = HERE) -> None:
    """Let a paused node go on and wait until it is in sync."""
    _cluster(folder).resume(node)


@dev.command()
def down(folder: Folder = HERE) -> None:
    """Unmount all nodes and end their daemons; the data stays."""
    _cluster(folder).down()


def _cluster(folder: Path) -> Cluster:
    return Cluster(folder, say=lambda line: typer.echo(line, err=True))


def _show(
    reply: dict[str, Any], render: Callable[[dict[str, Any], Console], None], *, as_json: bool
) -> None:
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(reply)))
    else:
        render(reply, Console())


def run(command: Callable[[], None], name: str) -> None:
    """Run a command line; a SetupError, or what the system refuses, is one line and exit code 1."""
    try:
        command()
    except SetupError as failure:
        typer.echo(f"{name}: {failure}", err=True)
        raise SystemExit(1) from None
    except OSError as failure:
        where = f"{failure.filename}: " if failure.filename else ""
        typer.echo(f"{name}: {where}{failure.strerror or failure}", err=True)
        raise SystemExit(1) from None


def main() -> None:
    """Run the command."""
    try:
        run(app, "clusterfs")
    except SystemExit as end:
        if end.code == _WRONG_USAGE and sys.argv[1:2] == ["fsck"]:
            raise SystemExit(WRONG_USAGE) from None  # as fsck(8) has it
        raise


if __name__ == "__main__":
    main()
