"""Clones and snapshots: `clusterfs clone`, `clusterfs snapshot create|list|remove|restore`.

A file is cloned by the daemon, as it is at one moment, into a file without a name, which gets its
name when it is complete. Users who may not ask the daemon get the same from the filesystem, range
by range; what somebody writes meanwhile may then be in it or not. A tree is cloned by the daemon,
into a directory under a temporary name beside the target, which is renamed when it is complete. So
a clone is there as a whole or not at all; what a crash leaves is an orphan that the filesystem
removes, or a directory `.clusterfs-clone-*` that may be removed.

The snapshots of a directory are trees in its `.snapshots`.
"""

import contextlib
import ctypes
import datetime as dt
import os
import secrets
import shutil
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from clusterfs import control
from clusterfs.cli.brick import show
from clusterfs.cli.control import mount_of, socket_for
from clusterfs.errors import SetupError

SNAPSHOTS = ".snapshots"
_QUOTA = "user.clusterfs.quota.used_files"
_TEMPORARY = ".clusterfs-clone-"
_PATIENCE_S = 24 * 3600.0
_AT_FDCWD, _AT_SYMLINK_FOLLOW = -100, 0x400
_NOREPLACE, _EXCHANGE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)

Directory = Annotated[Path, typer.Argument(help="A directory on a clusterfs.")]
Name = Annotated[str, typer.Argument(help="The snapshot's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]

app = typer.Typer(no_args_is_help=True, help="Snapshots of a directory: trees that share its data.")


def clone(
    source: Annotated[Path, typer.Argument(help="A file, or a directory tree.")],
    target: Annotated[Path, typer.Argument(help="What to make; must not exist.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Copy a file or a tree without moving data: both share it until either is changed."""
    with _errors(source, target):
        if os.path.lexists(target):
            raise SetupError(f"{target} exists; name something that does not")
        done = _clone_tree(source, target) if source.is_dir() else _clone_file(source, target)
    show(done, f"{source} is cloned: {done['nbytes']} bytes shared", as_json=as_json)


@app.command()
def create(
    directory: Directory,
    name: Annotated[str | None, typer.Argument(help="Its name; the time in UTC.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Keep a directory as it is at this moment, with all that is in it."""
    now = dt.datetime.now(tz=dt.UTC)
    _require_directory(directory)
    path = _snapshot(directory, name or now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    with _errors(directory, path):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if path.exists():
            raise SetupError(f"there is a snapshot {path.name} of {directory} already")
        done = _clone_tree(directory, path)
    show({"name": path.name, **done}, f"{path.name}: {done['files']} files", as_json=as_json)


@app.command("list")
def list_(directory: Directory, *, as_json: AsJson = False) -> None:
    """List the snapshots of a directory, the oldest first."""
    _require_directory(directory)
    with _errors(directory):
        found = [
            {"name": path.name, "path": str(path), "made": path.stat().st_ctime}
            for path in _snapshots(directory)
        ]
    found.sort(key=lambda one: float(str(one["made"])))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found)))
        return
    if not found:
        typer.echo(f"{directory} has no snapshots")
        return
    table = Table.grid(padding=(0, 2))
    for one in found:
        made = dt.datetime.fromtimestamp(float(str(one["made"])), tz=dt.UTC)
        table.add_row(str(one["name"]), f"{made:%Y-%m-%d %H:%M:%S} UTC")
    Console().print(table)


@app.command()
def remove(directory: Directory, name: Name) -> None:
    """Remove a snapshot; what only it held becomes free."""
    path = _existing(directory, name)
    with _errors(path):
        doomed = path.with_name(_temporary())
        path.rename(doomed)
        shutil.rmtree(doomed)


@app.command()
def restore(directory: Directory, name: Name) -> None:
    """Give a directory the contents that a snapshot has; what is there now goes.

    The directory changes all at once. Who has files open keeps the old ones.
    """
    path = _existing(directory, name)
    if directory.is_mount():
        raise SetupError("the root of a mount cannot be replaced; copy from its .snapshots instead")
    with contextlib.suppress(OSError):
        os.getxattr(directory, _QUOTA)
        raise SetupError("a directory with a quota cannot be replaced; copy from its .snapshots")
    with _errors(directory, path):
        place = directory.resolve()
        temporary = place.with_name(_temporary())
        _grow(path, temporary)
        _rename(temporary, place, _EXCHANGE)
        (temporary / SNAPSHOTS).rename(place / SNAPSHOTS)
        shutil.rmtree(temporary)


def _require_directory(path: Path) -> None:
    if not path.is_dir():
        raise SetupError(f"{path} is no directory")
    mount_of(path)


def _snapshot(directory: Path, name: str) -> Path:
    if not name or "/" in name or name.startswith("."):
        raise SetupError(f"{name!r} cannot be a snapshot's name: no slash, no dot at its beginning")
    return directory / SNAPSHOTS / name


def _existing(directory: Path, name: str) -> Path:
    _require_directory(directory)
    path = _snapshot(directory, name)
    if not path.is_dir():
        known = ", ".join(one.name for one in _snapshots(directory)) or "none"
        raise SetupError(f"there is no snapshot {name} of {directory}; there are: {known}")
    return path


def _snapshots(directory: Path) -> list[Path]:
    folder = directory / SNAPSHOTS
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _temporary() -> str:
    return _TEMPORARY + secrets.token_hex(4)


def _clone_file(source: Path, target: Path) -> dict[str, Any]:
    if not source.is_file() and source.exists():  # opening a FIFO would wait for its writer
        raise SetupError(f"{source} is neither a file nor a directory")
    reader = os.open(source, os.O_RDONLY)
    try:
        writer = os.open(target.absolute().parent, os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            size = _fill(source, target, reader, writer)
            status = os.fstat(reader)
            os.ftruncate(writer, max(size, status.st_size))
            os.fchown(writer, status.st_uid, status.st_gid)
            shutil.copystat(f"/proc/self/fd/{reader}", f"/proc/self/fd/{writer}")
            name = f"/proc/self/fd/{writer}".encode()
            path = os.fsencode(target)
            _check(_libc.linkat(_AT_FDCWD, name, _AT_FDCWD, path, _AT_SYMLINK_FOLLOW))
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    return {"files": 1, "directories": 0, "others": 0, "nbytes": size}


def _fill(source: Path, target: Path, reader: int, writer: int) -> int:
    """Share the data of an open file with an empty one; return its size."""
    numbers = os.fstat(reader), os.fstat(writer)
    if numbers[0].st_dev != numbers[1].st_dev:
        raise SetupError(f"{source} and {target} are not on one clusterfs mount")
    socket = _socket(target)
    if socket is not None:
        made = {"source": numbers[0].st_ino, "target": numbers[1].st_ino}
        return int(control.ask(socket, "clone", timeout_s=_PATIENCE_S, **made)["nbytes"])
    size = 0
    while count := os.copy_file_range(reader, writer, 1 << 40, size, size):
        size += count
    return size


def _socket(target: Path) -> Path | None:
    """Return where the daemon is asked, if this user may ask it."""
    with contextlib.suppress(SetupError, PermissionError):  # the config is not for everybody
        socket = socket_for(target.absolute().parent)
        return socket if os.access(socket, os.W_OK) else None
    return None


def _clone_tree(source: Path, target: Path) -> dict[str, Any]:
    temporary = target.absolute().with_name(_temporary())
    try:
        done = _grow(source, temporary)
        _rename(temporary, target, _NOREPLACE)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return done


def _grow(source: Path, target: Path) -> dict[str, Any]:
    """Make `target` a clone of the tree `source`."""
    target.mkdir(mode=0o700)
    try:
        origin, made = _on_one_mount(source, target)
        reply = control.ask(
            socket_for(target.parent),
            "clone",
            timeout_s=_PATIENCE_S,
            source=origin,
            target=made,
        )
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return {key: value for key, value in reply.items() if key != "ok"}


def _on_one_mount(source: Path, target: Path) -> tuple[int, int]:
    """Return the inode numbers."""
    origin, made = source.stat(), target.stat()
    if origin.st_dev != made.st_dev:
        raise SetupError(f"{source} and {target} are not on one clusterfs mount")
    return origin.st_ino, made.st_ino


def _rename(source: Path, target: Path, flags: int) -> None:
    names = os.fsencode(source), os.fsencode(target)
    _check(_libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flags))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _errors:  # noqa: N801  used as a function
    """Make what the filesystem refuses one line for the operator."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> None:
        if isinstance(failure, OSError):
            where = failure.filename or " -> ".join(str(path) for path in self._paths)
            raise SetupError(f"{where}: {failure.strerror}") from failure
