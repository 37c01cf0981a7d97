"""`clusterfs quota set|show|remove|list`: how much may be below a directory."""

import errno
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from clusterfs import control
from clusterfs.cli.brick import show as tell
from clusterfs.cli.control import find_socket, mount_of
from clusterfs.errors import SetupError

_PREFIX = "user.clusterfs.quota."
_LIMITS = {"limit_bytes": "bytes", "limit_files": "files"}
_USED = {"used_bytes": "used_bytes", "used_files": "used_files"}
_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}
_PATIENCE_S = 600.0
_MOST = 1 << 62
_WHY = {
    errno.ENOTEMPTY: "it is not empty; the first quota of a directory is set while it is",
    errno.EINVAL: "it is below a directory that has a quota, and quotas do not nest",
    errno.EPERM: "only root sets quotas",
    errno.ENODATA: "it has no quota",
    errno.ENOTDIR: "it is no directory",
}

Directory = Annotated[Path, typer.Argument(help="A directory on a clusterfs.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]

app = typer.Typer(no_args_is_help=True, help="Quotas: how much may be below a directory.")


@app.command("set")
def set_(
    directory: Directory,
    size: Annotated[
        str | None, typer.Option("--bytes", help="Sum of all sizes, as 500M or 2T; 0: no limit.")
    ] = None,
    files: Annotated[
        str | None, typer.Option("--files", help="Files, directories, links; 0: no limit.")
    ] = None,
) -> None:
    """Limit what is below a directory; the first time it must be empty."""
    wanted = {"bytes": size, "files": files}
    given = {name: _number(text) for name, text in wanted.items() if text is not None}
    if not given:
        raise SetupError("name a limit: --bytes, --files or both")
    for name, limit in given.items():
        _try(directory, os.setxattr, _PREFIX + name, b"%d" % limit)


@app.command()
def show(directory: Directory, *, as_json: AsJson = False) -> None:
    """Show a directory's limits, and what is used of them; all nodes are asked."""
    found = {
        name: int(_try(directory, os.getxattr, _PREFIX + attribute))
        for name, attribute in _USED.items()
    }
    for name, attribute in _LIMITS.items():
        found[name] = _limit(directory, attribute)
    text = f"{found['used_bytes']} bytes of {found['limit_bytes'] or 'any number'}"
    text += f", {found['used_files']} files of {found['limit_files'] or 'any number'}"
    tell(found, text, as_json=as_json)


@app.command()
def remove(directory: Directory) -> None:
    """Lift the limits of a directory; what is below is counted on until it is empty."""
    _try(directory, os.getxattr, _PREFIX + "used_files")
    for attribute in _LIMITS.values():
        if _limit(directory, attribute):
            _try(directory, os.removexattr, _PREFIX + attribute)


@app.command("list")
def list_(
    target: Annotated[
        str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List all quotas of the volume, with what is used of each."""
    found = control.ask(find_socket(target), "quotas", timeout_s=_PATIENCE_S)["quotas"]
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found)))
        return
    table = Table("directory", "bytes", "of", "files", "of", box=None)
    for one in found:
        limits = [str(one[name] or "-") for name in _LIMITS]
        used = [str(one[name]) for name in _USED]
        table.add_row(one["path"], used[0], limits[0], used[1], limits[1])
    Console().print(table)


def _limit(directory: Path, attribute: str) -> int:
    try:
        return int(os.getxattr(directory, _PREFIX + attribute))
    except OSError as failure:
        if failure.errno != errno.ENODATA:
            raise SetupError(f"{directory}: {failure.strerror}") from failure
        return 0


def _try(directory: Path, call: Any, *arguments: Any) -> Any:
    mount_of(directory)  # other filesystems would keep the attribute, and nothing would be limited
    try:
        return call(directory, *arguments)
    except OSError as failure:
        reason = _WHY.get(failure.errno or 0, failure.strerror)
        raise SetupError(f"{directory}: {reason}") from failure


def _number(text: str) -> int:
    """Return a number of bytes or files; k, M, G, T count in steps of 1024."""
    digits, shift = text, 0
    if text and text[-1].lower() in _UNITS:
        digits, shift = text[:-1], _UNITS[text[-1].lower()]
    if not digits.isdecimal():
        raise SetupError(f"{text!r} is no limit: write a number, or one with k, M, G or T")
    if (number := int(digits) << shift) > _MOST:
        raise SetupError(f"{text!r} is too much: 4194304T is the highest limit, 0 is none")
    return number
