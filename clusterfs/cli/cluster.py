"""`clusterfs cluster`: found a cluster, let nodes join it, look at them."""

import datetime as dt
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from clusterfs import control
from clusterfs.cli import founding, removing, tables
from clusterfs.cli.control import find_socket
from clusterfs.cli.founding import CONFIGS, Place, Provided
from clusterfs.errors import SetupError

app = typer.Typer(no_args_is_help=True, help="The nodes of a cluster: who is in, who holds what.")

Folder = Annotated[Path, typer.Option("--dir", help="Where the node's config file goes.")]
Brick = Annotated[Path, typer.Option("--brick", help="An empty directory for the node's data.")]
Listen = Annotated[str, typer.Option("--listen", help="host:port where the other nodes connect.")]
Advertise = Annotated[
    str | None, typer.Option("--advertise", help="host:port that they are told, if another.")
]
Encrypt = Annotated[
    bool | None,
    typer.Option("--tls/--no-tls", help="Whether nodes talk inside TLS: unless over loopback."),
]
NoStorage = Annotated[
    bool, typer.Option("--no-storage", help="Mount only: hold no data, as a client.")
]
EtcdUser = Annotated[str | None, typer.Option("--etcd-user", help="Where etcd wants a login.")]
EtcdFile = Annotated[Path | None, typer.Option(help="See etcd.* in clusterfs(1).")]
Target = Annotated[
    str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
]
Source = Annotated[
    str | None, typer.Option("--config", help="A node's config file; the only one in /etc.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
_HOUR_S = 3600


@app.command()
def init(  # noqa: PLR0913, PLR0917  (what a node needs)
    name: Annotated[str, typer.Argument(help="What this node is called.")],
    brick: Brick,
    provider: Annotated[
        str, typer.Option(help="etcd:URL,URL,... or local:FILE, for one machine.")
    ] = "local:/var/lib/clusterfs/cluster.db",
    listen: Listen = "127.0.0.1:7400",
    advertise: Advertise = None,
    folder: Folder = CONFIGS,
    volume: Annotated[str, typer.Option(help="Its name in etcd.")] = "default",
    replicas: Annotated[int, typer.Option(min=1, max=16, help="Copies of everything.")] = 3,
    groups: Annotated[int, typer.Option(min=1, max=1024, help="Units of placement.")] = 256,
    lease_s: Annotated[
        float, typer.Option("--lease", min=1, max=300, help="Seconds until a silent node is out.")
    ] = 5.0,
    etcd_user: EtcdUser = None,
    etcd_password_file: EtcdFile = None,
    etcd_ca: EtcdFile = None,
    etcd_certificate: EtcdFile = None,
    etcd_key: EtcdFile = None,
    *,
    tls: Encrypt = None,
) -> None:
    """Found a cluster: write this node's config file, and, off loopback, the cluster's authority.

    The authority's key, in DIR/authority, admits nodes: keep a copy of it in a safe place.
    """
    etcd = _etcd(etcd_user, etcd_password_file, etcd_ca, etcd_certificate, etcd_key)
    place = Place(folder, brick, listen, advertise, tls=tls)
    kept = {"replicas": replicas, "groups": groups, "lease_s": lease_s}
    path = founding.found(name, place, Provided(provider, volume, etcd), kept, _now())
    _say_how(path)
    typer.echo(f"the next node: clusterfs cluster token NAME --config {path}")


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="What the new node will be called.")],
    source: Source = None,
    authority: Annotated[
        Path | None, typer.Option(help="Folder with ca.key; beside the config file by default.")
    ] = None,
    hours: Annotated[int, typer.Option(min=1, max=720, help="How long it is good.")] = 24,
) -> None:
    """Print a token that lets one new node join, once."""
    path = founding.config_of(source)
    typer.echo(founding.invite(path, name, authority, hours * _HOUR_S, _now()))


@app.command()
def join(  # noqa: PLR0913, PLR0917  (what a node needs)
    word: Annotated[str, typer.Argument(metavar="TOKEN", help="From `clusterfs cluster token`.")],
    brick: Brick,
    listen: Listen = "127.0.0.1:7400",
    advertise: Advertise = None,
    folder: Folder = CONFIGS,
    etcd_user: EtcdUser = None,
    etcd_password_file: EtcdFile = None,
    etcd_ca: EtcdFile = None,
    etcd_certificate: EtcdFile = None,
    etcd_key: EtcdFile = None,
    *,
    no_storage: NoStorage = False,
    tls: Encrypt = None,
) -> None:
    """Make this machine a node of the cluster: write its config file and certificate."""
    etcd = _etcd(etcd_user, etcd_password_file, etcd_ca, etcd_certificate, etcd_key)
    place = Place(folder, brick, listen, advertise, storage=not no_storage, tls=tls)
    _say_how(founding.join(word, place, etcd, _now()))


@app.command("list")
def list_nodes(target: Target = None, *, as_json: AsJson = False) -> None:
    """Show all nodes that ever joined: up or away, and what each holds."""
    reply = control.ask(find_socket(target), "members")
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(reply)))
    else:
        tables.members(reply, Console())


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Which node.")],
    target: Target = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="It is lost and never comes back.")] = False,
    fewer: Annotated[
        bool, typer.Option("--fewer-copies", help="Although too few nodes are left for all copies.")
    ] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Let it hold data again.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is empty, and gone.")] = True,
) -> None:
    """Take a node out of the cluster for good: its data moves to the others, then it is forgotten.

    Programs on the other nodes notice nothing; those on this node must end before it is unmounted.
    """
    socket = find_socket(target)
    if cancel:
        control.ask(socket, "retire", name=name, cancel=True)
        typer.echo(f"{name} stays")
        return
    if not dead:
        control.ask(socket, "retire", name=name, fewer=fewer)
        if not removing.emptied(socket, name, wait=wait):
            return
    elif not removing.gone(socket, name):
        raise SetupError(f"{name} runs: leave --dead out, so that it is emptied first")
    control.ask(socket, "forget", name=name)
    typer.echo(f"{name} is forgotten; what is on its brick is of no use any more")


@app.command()
def force(
    target: Target = None,
    truth: Annotated[
        str | None, typer.Option("--truth", help="Whose older copy counts where none is newer.")
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Go on without nodes that are lost for good; says what may be lost with them, and asks.

    After a full stop the volume waits for every node that may have the newest data.
    """
    socket = find_socket(target)
    words: dict[str, Any] = {} if truth is None else {"truth": truth}
    reply = control.ask(socket, "force", **words)
    if not reply["groups"]:
        typer.echo("no group waits for a node that is away: nothing to do")
        return
    typer.echo(reply["text"])
    if not (reply["recent"] or truth):
        raise SetupError("nothing can be opened like this: say --truth NODE")
    if not yes and not typer.confirm("Go on without them?"):
        raise SetupError("nothing was changed")
    control.ask(socket, "force", sure=True, **words)
    typer.echo("the groups are opened as soon as the nodes that are here agree")


def _etcd(
    user: str | None,
    password_file: Path | None,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
) -> dict[str, str]:
    """Return the section etcd, but for the volume."""
    files = {"password_file": password_file, "ca": ca, "certificate": certificate, "key": key}
    named = {name: str(path.absolute()) for name, path in files.items() if path is not None}
    return named if user is None else {"user": user, **named}


def _say_how(path: Path) -> None:
    typer.echo(f"wrote {path}")
    typer.echo(f"mount it: mount -t clusterfs {path} DIRECTORY")
    typer.echo(f"or serve its brick only: clusterfs serve {path}")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
