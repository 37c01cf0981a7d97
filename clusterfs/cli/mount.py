"""mount.clusterfs: mounts a node from its config file and returns when the mount answers.

Also the helper that mount(8) calls for type clusterfs. In the background case the command starts
itself again with `-f` and a pipe; what arrives there, "ok" or the reason, decides how it ends.

The checks that need no daemon come first, so that a mistake is one line on the terminal and leaves
nothing changed.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from clusterfs import config
from clusterfs.cli import processes
from clusterfs.cli.control import mount_at, resolved
from clusterfs.errors import SetupError

FUSE_DEVICE = Path("/dev/fuse")

_CONFIG_KEYS = {"on_lost", "mmap", "log_level"}
_OWN_KEYS = {"log", "pidfile", "timeout", "ready_fd"}
_PLAIN_WORDS = {"defaults", "rw", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users"}
_KERNEL_WORDS = {
    *("ro", "dev", "nodev", "suid", "nosuid", "exec", "noexec", "sync", "async", "dirsync"),
    *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "lazytime"),
    *("allow_other", "default_permissions"),
}


class Options(msgspec.Struct, frozen=True):
    """What -o said, sorted by who it is for."""

    settings: dict[str, str]  # win over the config file
    kernel: tuple[str, ...]  # for the mount itself
    log: Path
    pidfile: Path | None
    timeout_s: float
    ready_fd: int | None


def parse_options(words: Sequence[str]) -> Options:
    """Sort mount options; raises SetupError for one that nobody knows."""
    settings: dict[str, str] = {}
    own: dict[str, str] = {}
    kernel: list[str] = []
    for word in ",".join(words).split(","):
        key, equals, value = word.partition("=")
        if equals and key in _CONFIG_KEYS:
            settings[key] = value
        elif equals and key in _OWN_KEYS:
            own[key] = value
        elif word in _KERNEL_WORDS:
            kernel.append(word)
        elif word and word not in _PLAIN_WORDS and not key.startswith(("x-", "comment")):
            raise SetupError(f"-o {word}: no such mount option")
    try:
        return Options(
            settings,
            tuple(kernel),
            Path(own.get("log", os.devnull)).absolute(),
            Path(own["pidfile"]).absolute() if "pidfile" in own else None,
            float(own.get("timeout", "60")),
            int(own["ready_fd"]) if "ready_fd" in own else None,
        )
    except ValueError as failure:
        raise SetupError(f"-o timeout: {failure}") from failure


def check_mount_point(directory: Path) -> Path:
    """Return the mount point resolved; raises SetupError unless it can be mounted on."""
    place = resolved(directory)
    if mount := mount_at(place):
        raise SetupError(f"{directory}: {mount.source} is mounted there already")
    try:
        descriptor = os.open(place, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
    except NotADirectoryError as failure:
        raise SetupError(f"{directory}: the mount point is not a directory") from failure
    except OSError as failure:
        raise SetupError(f"{directory}: mount point: {failure.strerror}") from failure
    os.close(descriptor)
    return place


def check_device(device: Path = FUSE_DEVICE) -> None:
    """Raise SetupError unless this process may speak FUSE."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as failure:
        raise SetupError(f"{device} is missing: `modprobe fuse` makes it") from failure

    except OSError as failure:
        raise SetupError(f"cannot open {device}: {failure.strerror}; run as root") from failure


def mount(source: Path, directory: Path, options: Options) -> None:
    """Start a daemon in the background; returns when the mount answers. Raises SetupError."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "clusterfs.cli.mount", str(source), str(directory), "-f"]
    command += ["-o", _join(options, writer)]
    with options.log.open("ab") as log, os.fdopen(reader, "rb") as pipe:
        subprocess.Popen(  # it outlives this command: nobody waits for it
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            start_new_session=True,
            cwd="/",
        )
        os.close(writer)
        answer = pipe.readline().decode("utf-8", "replace").strip()
    if answer != "ok":
        reason = answer or "the daemon ended before the mount was ready"
        hint = "" if answer or str(options.log) == os.devnull else f"; see {options.log}"
        raise SetupError(reason + hint)
    _wait_answer(directory, options.timeout_s)


def _join(options: Options, ready_fd: int) -> str:
    words = [f"{key}={value}" for key, value in options.settings.items()]
    words += [*options.kernel, f"ready_fd={ready_fd}"]
    if options.pidfile:
        words.append(f"pidfile={options.pidfile}")
    return ",".join(words)


def _wait_answer(directory: Path, timeout_s: float) -> None:
    """Ask the mount itself; on a thread, because nothing but an answer ends a FUSE request."""
    answered: list[None] = []
    thread = threading.Thread(
        target=lambda: answered.append(os.statvfs(directory) and None), daemon=True
    )
    thread.start()
    thread.join(timeout_s)
    if not answered:
        raise SetupError(f"{directory} is mounted but does not answer within {timeout_s:g} s")


def serve(source: Path, directory: Path, options: Options) -> None:
    """Run the daemon in this process until it is unmounted. Raises SetupError."""
    settings: dict[str, Any] = dict(options.settings)
    loaded = config.load(source, settings)

    def daemon(beat: Any) -> None:
        from clusterfs import daemon as composition  # noqa: PLC0415  (slow; the checks come first)

        if options.pidfile:
            me = processes.identify(os.getpid())
            assert me is not None
            processes.record(options.pidfile, me)
        composition.run(loaded, source, directory, options.kernel, _ready(options), beat)

    from clusterfs.fuse.supervisor import run_supervised  # noqa: PLC0415  (as above)

    run_supervised(daemon)


def _ready(options: Options) -> Any:
    def ready() -> None:
        _tell(options.ready_fd, "ok")

    return ready


def _tell(ready_fd: int | None, word: str) -> None:
    if ready_fd is not None:
        os.write(ready_fd, " ".join(word.split()).encode() + b"\n")
        os.close(ready_fd)


def _fail(failure: SetupError) -> NoReturn:
    typer.echo(f"mount.clusterfs: {failure}", err=True)
    raise typer.Exit(1)


def _mount(  # noqa: PLR0913  (mount(8) decides what there is)
    source: Annotated[Path, typer.Argument(help="The node's config file.")],
    directory: Annotated[Path, typer.Argument(help="Where to mount it.")],
    option: Annotated[
        list[str] | None, typer.Option("-o", help="Mount options, separated by commas.")
    ] = None,
    *,
    foreground: Annotated[bool, typer.Option("-f", help="Stay in the foreground.")] = False,
    sloppy: Annotated[bool, typer.Option("-s", hidden=True)] = False,
    verbose: Annotated[bool, typer.Option("-v", help="Say what is mounted.")] = False,
    no_mtab: Annotated[bool, typer.Option("-n", hidden=True)] = False,
    kind: Annotated[str, typer.Option("-t", hidden=True)] = "clusterfs",
) -> None:
    """Mount a clusterfs node: start its daemon and return when the mount answers.

    Exit code: 0 mounted (with -f: unmounted again), 1 not mounted, 2 wrong usage.
    """
    del sloppy, no_mtab, kind  # mount(8) passes them; they change nothing here
    options = None
    try:
        options = parse_options(option or [])
        config.load(source, dict(options.settings)).secret()
        place = check_mount_point(directory)
        check_device()
        if foreground:
            serve(source.absolute(), place, options)
        else:
            mount(source.absolute(), place, options)
    except SetupError as failure:
        _tell(options.ready_fd if options else None, str(failure))
        _fail(failure)
    if verbose:
        typer.echo(f"{source} mounted on {directory}")


def main() -> None:
    """Run the command."""
    typer.run(_mount)


if __name__ == "__main__":
    main()
