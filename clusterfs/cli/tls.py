"""`clusterfs tls`: make the cluster's certificate authority, and certificates for its nodes."""

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from clusterfs import certificates, config

app = typer.Typer(no_args_is_help=True, help="Certificates, so that nodes trust each other.")

Authority = Annotated[Path, typer.Option("--authority", help="The authority's folder.")]
_AUTHORITY = Path("clusterfs-authority")
_MOST_DAYS = 100 * 365


@app.command()
def authority(
    folder: Annotated[Path, typer.Argument(help="A new folder.")] = _AUTHORITY,
    days: Annotated[int, typer.Option(min=1, max=_MOST_DAYS, help="How long it is valid.")] = (
        certificates.AUTHORITY_DAYS
    ),
) -> None:
    """Make the authority: ca.pem, and ca.key, which admits nodes: keep it off them."""
    certificates.make_authority(folder, dt.datetime.now(dt.UTC), days=days)
    typer.echo(f"made {folder / 'ca.pem'} and {folder / 'ca.key'}")


@app.command()
def certificate(
    name: Annotated[str, typer.Argument(help="The node's name, as in its config.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write.")] = Path(),
    source: Authority = _AUTHORITY,
    days: Annotated[int, typer.Option(min=1, max=_MOST_DAYS, help="How long it is valid.")] = (
        certificates.NODE_DAYS
    ),
    address: Annotated[
        list[str] | None, typer.Option(help="An IP address; etcd's servers need theirs.")
    ] = None,
) -> None:
    """Make NAME.pem, NAME.key and a copy of ca.pem for one node."""
    config.check_name(name)
    now = dt.datetime.now(dt.UTC)
    certificates.issue(source, name, folder, now, days=days, addresses=address or ())
    typer.echo(f"made {folder / f'{name}.pem'} and {folder / f'{name}.key'}")
