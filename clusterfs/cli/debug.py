"""`clusterfs debug bundle`: all that helps to understand a node, in one file to send to somebody.

No data of files, no keys, no passwords: the config names files with secrets, their content stays
where it is, and values of keys that sound like secrets are left out.
"""

import io
import os
import platform
import re
import tarfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer

from clusterfs import control
from clusterfs.cli.control import find_socket
from clusterfs.errors import NotAnswering, SetupError

app = typer.Typer(no_args_is_help=True, help="For those who look into a problem.")

_REQUESTS = ("status", "statistics", "members", "df", "locks")
_LOG_BYTES = 4 << 20
_SECRET = re.compile(r"(?im)^(\s*[\w.\"-]*(?:password|secret|token|passphrase)[\w\"-]*\s*=).*$")


@app.callback()
def _debug() -> None:
    """For those who look into a problem."""


@app.command()
def bundle(
    target: Annotated[
        str | None, typer.Argument(help="A mount point, a config file or an admin socket.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("clusterfs-debug.tar.gz"),
) -> None:
    """Pack status, counters, locks, config and the end of the log of a node into one file."""
    socket = find_socket(target)
    parts: dict[str, Callable[[], bytes]] = {
        "versions.json": _versions,
        "mountinfo": Path("/proc/self/mountinfo").read_bytes,
    }
    for request in _REQUESTS:
        parts[f"{request}.json"] = _asking(socket, request)
    status = _answer(socket, "status")
    if "pid" in status:
        parts |= {
            "config.toml": lambda: without_secrets(Path(status["config"]).read_text()).encode(),
            "process": Path(f"/proc/{status['pid']}/status").read_bytes,
            "log": lambda: _log_end(status["pid"]),
        }
    with _private(out) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in parts.items():
            _add(archive, f"clusterfs-debug/{name}", content)
    typer.echo(f"{out}: it has names of files and hosts in it, but no data and no keys")


def without_secrets(text: str) -> str:
    """Return a config with the values of keys that sound like secrets left out."""
    return _SECRET.sub(r"\1 '(left out)'", text)


def _private(path: Path) -> BinaryIO:
    """Open a file that nobody else may read at any moment, whoever could before."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)
    except OSError as failure:
        raise SetupError(f"cannot write {path}: {failure.strerror}") from failure
    return os.fdopen(descriptor, "wb")


def _add(archive: tarfile.TarFile, name: str, content: Callable[[], bytes]) -> None:
    try:
        data = content()
    except OSError as failure:
        data = f"not to be had: {failure}\n".encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = 0o600
    entry.mtime = int(time.time())  # noqa: TID251  (a shell reads clocks)
    archive.addfile(entry, io.BytesIO(data))


def _asking(socket: Path, request: str) -> Callable[[], bytes]:
    return lambda: msgspec.json.format(msgspec.json.encode(_answer(socket, request)))


def _answer(socket: Path, request: str) -> dict[str, Any]:
    """Return the daemon's reply, or why there is none: a node that hangs is why people ask."""
    try:
        return control.ask(socket, request, timeout_s=30)
    except NotAnswering as failure:
        return {"ok": False, "error": str(failure)}


def _versions() -> bytes:
    return msgspec.json.encode(
        {
            "clusterfs": version("clusterfs"),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "machine": platform.machine(),
        }
    )


def _log_end(pid: int) -> bytes:
    """Return the end of the file that the daemon writes its log to."""
    path = Path(f"/proc/{pid}/fd/2")  # also if it has no name any more
    if not path.is_file():
        return b"the log goes to no file: see the journal of the service\n"
    with path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
        return log.read()
