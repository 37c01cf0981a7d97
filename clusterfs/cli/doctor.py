"""`clusterfs doctor`: whether a mount does what its users need, tried and told line by line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from clusterfs.cli import image_checks, rehearsal
from clusterfs.cli.control import mount_at, mounts
from clusterfs.cli.image_checks import Finding
from clusterfs.errors import SetupError

LIBVIRT = Path("/etc/libvirt/qemu.conf")
PROXMOX = Path("/etc/pve/storage.cfg")
_COLOURS = {"ok": "green", "bad": "red", "note": "yellow"}

Folder = Annotated[Path, typer.Argument(help="A directory on a clusterfs mount.")]
Other = Annotated[
    Path | None,
    typer.Argument(help="The same directory through another node's mount on this machine."),
]
Virtual = Annotated[bool, typer.Option("--vm", help="As a volume of QEMU images.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def doctor(
    folder: Folder, other: Other = None, *, vm: Virtual = True, as_json: AsJson = False
) -> None:
    """Try what QEMU, libvirt and Proxmox need of a shared volume; exit code 1 if a check fails.

    With OTHER each check has one side on each node. It leaves nothing behind.
    """
    del vm  # the only kind of check so far, and the default
    found = []
    console = Console()
    for finding in report(folder, other, LIBVIRT, PROXMOX):
        found.append(finding)
        if not as_json:
            state = f"[{_COLOURS[finding.state]}]{finding.state:4}[/]"
            console.print(f"{state} {escape(finding.check)}: {escape(finding.detail)}")
    if as_json:
        typer.echo(msgspec.json.encode([finding._asdict() for finding in found]))
    if any(finding.state == "bad" for finding in found):
        raise typer.Exit(1)


def report(folder: Path, other: Path | None, libvirt: Path, proxmox: Path) -> Iterator[Finding]:
    """Make all checks. Raises SetupError if a folder is not on a clusterfs mount."""
    places = [_mount_of(folder), _mount_of(other or folder)]
    second = other or folder
    if places[0] == places[1]:
        yield Finding("two nodes", "note", "not tried: name the other node's mount as well")
    yield from image_checks.findings(folder, second)
    yield from rehearsal.findings(folder, second)
    yield _libvirt(libvirt, places[0])
    yield _proxmox(proxmox, places[0])


def _mount_of(folder: Path) -> Path:
    """Return the clusterfs mount that a directory is on."""
    place = folder.resolve()
    for candidate in (place, *place.parents):
        if mount_at(candidate):
            return candidate
    known = ", ".join(str(mount.point) for mount in mounts()) or "none"
    raise SetupError(f"{folder} is not on a clusterfs mount; mounts here: {known}")


def _libvirt(config: Path, mount: Path) -> Finding:
    """Libvirt knows cluster filesystems by name, and this one not yet."""
    line = f'shared_filesystems = [ "{mount}" ]'
    if not config.exists():
        return Finding("libvirt", "note", f"not installed here; {config} would need: {line}")
    settings = [
        text for text in config.read_text().splitlines() if not text.lstrip().startswith("#")
    ]
    if any("shared_filesystems" in text and f'"{mount}"' in text for text in settings):
        return Finding("libvirt", "ok", f"{config} lists {mount} as shared")
    detail = f"it would call a migration unsafe; add to {config}, and restart it: {line}"
    return Finding("libvirt", "bad", detail)


def _proxmox(config: Path, mount: Path) -> Finding:
    """Proxmox VE takes any mount as a directory storage that says it is shared."""
    wanted = f"a `dir:` storage with path {mount}, shared 1, is_mountpoint yes"
    if not config.exists():
        return Finding("Proxmox VE", "note", f"not installed here; it would need {wanted}")
    for block in config.read_text().split("\n\n"):
        words = [line.split() for line in block.splitlines()]
        if ["path", str(mount)] in words:
            lacking = [name for name in ("shared", "is_mountpoint") if not _is_on(words, name)]
            if not lacking:
                return Finding("Proxmox VE", "ok", f"{config} has {wanted}")
            return Finding("Proxmox VE", "bad", f"{config}: {mount} lacks {', '.join(lacking)}")
    return Finding("Proxmox VE", "bad", f"{config} does not have {wanted}")


def _is_on(words: list[list[str]], name: str) -> bool:
    return any(line[:1] == [name] and line[1:] in (["1"], ["yes"]) for line in words)
