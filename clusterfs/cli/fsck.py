"""`clusterfs fsck`: checks a brick that no daemon serves; exit codes as fsck(8) has them."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from clusterfs import config
from clusterfs.errors import SetupError
from clusterfs.fs.checking import check_namespace
from clusterfs.store.checking import Progress as Told
from clusterfs.store.checking import Report, check_brick
from clusterfs.store.disk import DirectoryDisk

REPAIRED = 1
LEFT = 4
NOT_DONE = 8
WRONG_USAGE = 16
CANCELLED = 32


def fsck(
    brick: Annotated[Path, typer.Argument(help="A brick's directory, or a node's config file.")],
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Correct what can be.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Read no logs and no data.")] = False,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Put the content away; the node gets all anew.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check a brick whose daemon is not running: log, checkpoint, references, namespace, data."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)  # it keeps one a segment open
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        folder = _brick(brick)
        if set_aside:
            _set_aside(folder, as_json=as_json)
            return
        with _progress(shown=not as_json) as progress:
            report = check_brick(
                DirectoryDisk(folder, read_only=not repair),
                repair=repair,
                data=not quick,
                progress=progress,
                also=check_namespace,
            )
    except (SetupError, OSError) as failure:
        typer.echo(f"clusterfs fsck: {failure}", err=True)
        raise SystemExit(NOT_DONE) from None
    except KeyboardInterrupt:
        raise SystemExit(CANCELLED) from None
    _show(report, as_json=as_json)
    raise SystemExit(report.exit_code)


def _brick(path: Path) -> Path:
    folder = Path(config.load(path).brick) if path.is_file() else path
    if not (folder / "brick.json").exists() and not (folder / "segments").exists():
        raise SetupError(f"{path}: no brick; give its directory, or the node's config file")
    return folder


def _set_aside(folder: Path, *, as_json: bool) -> None:
    disk = DirectoryDisk(folder)
    disk.lock()
    try:
        where = disk.set_aside()
    except OSError as failure:
        raise SetupError(f"{folder}: {failure.strerror}") from failure
    finally:
        disk.close()
    if as_json:
        typer.echo(msgspec.json.encode({"set_aside": str(where)}))
    else:
        typer.echo(f"the content is in {where}; delete it once the node is in sync again")


@contextmanager
def _progress(*, shown: bool) -> Iterator[Told]:
    """Show what is being done, with a bar where the end is known; on stderr, if a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bars:

        def told(what: str, done: int, total: int) -> None:
            for other, task in tasks.items():
                if other != what:
                    bars.update(task, completed=bars.tasks[task].total or 1)
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield told


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(as_plain(report))))
        return
    for problem in report.problems:
        typer.echo(problem)
    more = sum(report.counts.values()) - len(report.problems)
    if more > 0:
        typer.echo(f"... and {more} more")
    facts = ", ".join(f"{number} {name}" for name, number in report.facts.items())
    typer.echo(f"{_verdict(report)}: {facts}")
    if report.left:
        typer.echo(
            "damaged data: start the node and run `clusterfs scrub`; a replica has it. "
            "Anything else: `clusterfs fsck --repair`, or `--set-aside` to synchronise it anew."
        )


def _verdict(report: Report) -> str:
    if not report.counts:
        return "clean"
    return f"{report.repaired} problems repaired, {report.left} left"


def as_plain(report: Report) -> dict[str, Any]:
    """Return what --json prints."""
    return {
        "clean": not report.counts,
        "repaired": report.repaired,
        "left": report.left,
        "counts": dict(report.counts),
        "problems": report.problems,
        "facts": report.facts,
    }
