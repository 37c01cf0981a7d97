"""mount.clusterfs: mounts a node from its config file and returns when the mount answers.

Also the helper that mount(8) calls for type clusterfs: it may be given -s, -n, -v and -t.

The checks that need no daemon come first, so that a mistake is one line on the terminal and leaves
nothing changed.
"""

import os
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from clusterfs import config
from clusterfs.cli import processes
from clusterfs.cli.control import FILESYSTEM_TYPE, mount_at, resolved
from clusterfs.errors import SetupError
from clusterfs.fuse.beat import Beat
from clusterfs.fuse.inheritance import Inheritance, inherited
from clusterfs.fuse.supervisor import ReadyPipe, run_supervised, take_over
from clusterfs.fuse.unmounting import clear_dead

FUSE_DEVICE = Path("/dev/fuse")

_CONFIG_KEYS = {"on_lost", "log_level"}
_ACCESS_TIMES = {"noatime", "relatime"}  # for the kernel, and for the daemon
_OWN_KEYS = {"log", "pidfile"}
_MODULE = "clusterfs.cli.mount"
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
    log: Path | None
    pidfile: Path | None


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
            if word in _ACCESS_TIMES:
                settings["access_times"] = word
        elif word and word not in _PLAIN_WORDS and not key.startswith(("x-", "comment")):
            raise SetupError(f"-o {word}: no such mount option")
    return Options(
        settings,
        tuple(kernel),
        Path(own["log"]).absolute() if "log" in own else None,
        Path(own["pidfile"]).absolute() if "pidfile" in own else None,
    )


def check_mount_point(directory: Path) -> Path:
    """Return the mount point resolved; raises SetupError unless it can be mounted on."""
    place = resolved(directory)
    clear_dead(str(place), FILESYSTEM_TYPE)
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


def check_brick(brick: Path) -> None:
    """Raise SetupError unless the brick is a directory: a lost disk gets no new one."""
    try:
        mode = brick.stat().st_mode
    except OSError as failure:
        raise SetupError(
            f"brick {brick}: {failure.strerror}; for a new brick make an empty directory"
        ) from failure
    if not stat.S_ISDIR(mode):
        raise SetupError(f"brick {brick} is not a directory")


def check_files(options: Options) -> None:
    """Raise SetupError unless the log and the pid file can be written."""
    try:
        if options.log:
            os.close(os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640))
    except OSError as failure:
        raise SetupError(f"-o log={options.log}: {failure.strerror}") from failure
    if options.pidfile and not os.access(options.pidfile.parent, os.W_OK):
        raise SetupError(f"-o pidfile={options.pidfile}: {options.pidfile.parent} is not writable")


def check_address(address: str) -> None:
    """Raise SetupError if the daemon could not listen there; it would notice only when joined."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
            probe.listen(1)
    except OSError as failure:
        raise SetupError(
            f"cannot listen on {address}: {failure.strerror}; choose another with the key 'listen'"
        ) from failure


def mount(
    source: Path,
    directory: Path | None,
    words: Sequence[str],
    *,
    foreground: bool,
    inheritance: Inheritance | None = None,
) -> int:
    """Run a node's daemon and its supervisor; without a directory it only serves its brick.

    With an inheritance it is only the daemon, which goes on with a mount.

    In the background it returns when the mount answers, in the foreground when it has ended. A
    failure of the daemon is one line on stderr and exit code 1. Raises SetupError before it starts
    anything.
    """
    options = parse_options(words)
    loaded = config.load(source, dict(options.settings))
    place = directory
    if directory is None and not loaded.storage:
        raise SetupError(f"{source}: storage is false, so there is nothing to serve: mount it")
    if directory is not None and inheritance is None:
        place = check_mount_point(directory)
        check_device()
    check_brick(Path(loaded.brick))
    if inheritance is None:
        check_files(options)
        check_address(loaded.listen)

    def daemon(beat: Beat, ready: ReadyPipe) -> int:
        from clusterfs import daemon as composition  # noqa: PLC0415  (the supervisor stays small)

        if options.pidfile:
            processes.record(options.pidfile, processes.family())
        return composition.run(
            loaded, source.absolute(), place, options.kernel, beat, ready, inheritance
        )

    def report(node: int, incarnation: int) -> None:
        from clusterfs import daemon as composition  # noqa: PLC0415  (as above)

        composition.caches_dropped(loaded, node, incarnation)

    if inheritance is not None:
        return take_over(daemon, inheritance)

    def successor(inheritance: Inheritance) -> list[str]:
        command = [sys.executable, *interpreter, "-m", _MODULE, str(source.absolute()), str(place)]
        for word in words:
            command += ["-o", word]
        return [*command, "--take-over", inheritance.text()]

    interpreter = ["-P"] if sys.flags.safe_path else []
    log = str(options.log) if options.log and not foreground else None
    return run_supervised(
        daemon, foreground=foreground, report=report, successor=successor, log_path=log
    )


def _mount(  # noqa: PLR0913  (mount(8) decides what there is)
    source: Annotated[Path, typer.Argument(help="The node's config file.")],
    directory: Annotated[
        # A parser of our own: the usual one asks for the path, and a mount may not answer.
        Path,
        typer.Argument(help="Where to mount it.", parser=Path, metavar="DIRECTORY"),
    ],
    option: Annotated[
        list[str] | None, typer.Option("-o", help="Mount options, separated by commas.")
    ] = None,
    *,
    foreground: Annotated[bool, typer.Option("-f", help="Stay in the foreground.")] = False,
    sloppy: Annotated[bool, typer.Option("-s", hidden=True)] = False,
    verbose: Annotated[bool, typer.Option("-v", help="Say what is mounted.")] = False,
    no_mtab: Annotated[bool, typer.Option("-n", hidden=True)] = False,
    kind: Annotated[str, typer.Option("-t", hidden=True)] = "clusterfs",
    heir: Annotated[str, typer.Option("--take-over", hidden=True)] = "",
) -> None:
    """Mount a clusterfs node: start its daemon and return when the mount answers.

    Exit code: 0 mounted (with -f: unmounted again), 1 not mounted, 2 wrong usage.
    """
    del sloppy, no_mtab, kind  # mount(8) passes them; they change nothing here
    try:
        inheritance = inherited(heir) if heir else None
        words = option or []
        code = mount(source, directory, words, foreground=foreground, inheritance=inheritance)
    except SetupError as failure:
        typer.echo(f"mount.clusterfs: {failure}", err=True)
        raise typer.Exit(1) from failure
    if verbose and code == 0 and not foreground:
        typer.echo(f"{source} mounted on {directory}")
    raise typer.Exit(code)


def main() -> None:
    """Run the command."""
    typer.run(_mount)


if __name__ == "__main__":
    main()
