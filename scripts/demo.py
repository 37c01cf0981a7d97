"""The demonstration: three nodes on this machine do what the filesystem is for, each step checked.

Everything happens in a temporary folder; the demonstration ends by itself and takes everything away
again. Exit code 0 only if every step was as said.
"""

import argparse
import contextlib
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.filesize import decimal
from rich.panel import Panel
from rich.progress import track
from rich.table import Table

from clusterfs import control
from clusterfs.cli import lockdump, processes
from clusterfs.cli.dev import Cluster, clear_mount
from clusterfs.cli.locks.picture import read_picture
from clusterfs.cli.locks.waits import waits
from clusterfs.errors import NotAnswering, SetupError

LINES = 1000
LIMIT_S = 900
console = Console(highlight=False)


class NotAsSaid(Exception):
    """A step did not do what it announced."""


class Demonstration:
    """The steps, in order; `steps` is filled by the decorator below."""

    def __init__(self, cluster: Cluster, scratch: Path, files: int) -> None:
        self.cluster = cluster
        self.scratch = scratch
        self.tree = library(scratch / "library", files)

    @property
    def mounts(self) -> list[Path]:
        """Return the three mount points."""
        return [node.mount for node in self.cluster.nodes]

    def start(self) -> str:
        """Three daemons, three mounts of one volume, every byte kept three times."""
        self.cluster.up(3, 3)
        for node in self.cluster.nodes:
            check(os.path.ismount(node.mount), f"{node.mount} is mounted")
        table = Table("node", "mount", "daemon")
        for node in self.cluster.nodes:
            process = node.process
            table.add_row(node.name, str(node.mount), f"pid {process.pid if process else '-'}")
        console.print(table)
        return "three nodes mounted and in sync"

    def copy_a_tree(self) -> str:
        """Copy files of the Python standard library in on n1, read every byte on n2 and n3."""
        first, *others = self.mounts
        started_s = time.monotonic()
        run("cp", "-a", self.tree, first / "library")
        took_s = time.monotonic() - started_s
        for other in others:
            compare(self.tree, other / "library", f"comparing on {other.name}")
        count = sum(path.is_file() for path in self.tree.rglob("*"))
        return f"{count} files copied in {took_s:.1f} s, the same byte by byte on n2 and n3"

    def append_together(self) -> str:
        """Append to one file from all three nodes at once: no line may be lost or torn."""
        (self.mounts[0] / "log").touch()

        def append(mount: Path) -> None:
            log = os.open(mount / "log", os.O_WRONLY | os.O_APPEND)
            for number in range(LINES):
                os.write(log, f"{mount.name} {number}\n".encode())
            os.close(log)

        together(*[lambda mount=mount: append(mount) for mount in self.mounts])
        for mount in self.mounts:
            lines = (mount / "log").read_text().splitlines()
            for writer in self.mounts:
                mine = [line for line in lines if line.startswith(f"{writer.name} ")]
                expected = [f"{writer.name} {number}" for number in range(LINES)]
                check(mine == expected, f"{mount.name} sees every line of {writer.name} in order")
            check(len(lines) == 3 * LINES, f"{mount.name} sees {3 * LINES} lines")
        return f"3 x {LINES} lines, none lost, none torn, the same on every node"

    def use_a_disk_image(self) -> str:
        """Make a raw disk image with qemu-img on n1 and compare it on n3."""
        source = self.scratch / "source.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", source, "256M")
        for number in range(12):
            place = f"write -q -P {number + 1} {number * 21}M {64 + number * 100}k"
            run("qemu-io", "-f", "qcow2", "-c", place, source)
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", source, self.mounts[0] / "disk.raw")
        said = run("qemu-img", "compare", source, self.mounts[2] / "disk.raw")
        check("identical" in said, "qemu-img compare finds the images identical")
        seen = (self.mounts[1] / "disk.raw").stat()
        check(seen.st_size == 256 << 20, "n2 sees the size of the image")
        return f"identical on n3; {decimal(seen.st_blocks * 512)} of {decimal(seen.st_size)} in use"

    def lose_a_node(self) -> str:
        """Kill n2 with SIGKILL in the middle of a copy on n1: the copy goes on."""
        target = self.mounts[0] / "second copy"
        copying = threading.Thread(target=run, args=("cp", "-a", self.tree, target))
        copying.start()
        some = 20
        wait(lambda: target.is_dir() and len(list(target.iterdir())) > some, "the copy is going")
        self.cluster.kill("n2")
        check(copying.is_alive(), "n2 died in the middle of the copy")
        killed_s = time.monotonic()
        before = len(list(target.rglob("*")))
        wait(lambda: len(list(target.rglob("*"))) > before or not copying.is_alive(), "it goes on")
        paused_s = time.monotonic() - killed_s
        copying.join()
        compare(self.tree, self.mounts[2] / "second copy", "comparing on n3")
        self.cluster.start("n2")
        check(self.cluster.node("n2").state() == "running", "n2 runs again")
        compare(self.tree, self.mounts[1] / "second copy", "comparing on n2, in sync again")
        return f"the copy went on {paused_s:.1f} s after the kill; n2 is back in sync, nothing lost"

    def fight_for_a_file(self) -> str:
        """Write one file on n1 and n2 as fast as it goes, and look at the lock on the way."""
        (self.mounts[0] / "contended").write_bytes(bytes(4096))
        done = threading.Event()
        turns = [0, 0]

        def fight(index: int) -> None:
            writer = os.open(self.mounts[index] / "contended", os.O_RDWR)
            while not done.is_set():
                os.pwrite(writer, bytes([turns[index] % 256]) * 4096, 0)
                turns[index] += 1
            os.close(writer)

        fighters = [threading.Thread(target=fight, args=(index,)) for index in range(2)]
        for fighter in fighters:
            fighter.start()
        try:
            dump = self._find_fight()
            wait(lambda: min(turns) > 0, "both nodes have their turn")
        finally:
            done.set()
            for fighter in fighters:
                fighter.join()
        lockdump.render(dump, lockdump.View(waiters=True), console)
        return f"n1 wrote {turns[0]} times, n2 {turns[1]} times; the lock went to and fro"

    def _find_fight(self) -> dict[str, object]:
        """Dump locks until one shows somebody waiting for the file."""
        found: dict[str, object] = {}

        def seen() -> bool:
            dump = lockdump.fetch(str(self.mounts[2]), cluster=True, only_busy=True)
            if any(wait.path.endswith("contended") for wait in waits(read_picture(dump))):
                found.update(dump)
            return bool(found)

        wait(seen, "clusterfs-lockdump shows a node that waits")
        return found

    def look_into_the_store(self) -> str:
        """Ask what deduplication and the log did."""
        numbers = self.cluster.nodes[0].ask("status")["store"]
        table = Table("store of n1", "")
        for key, value in sorted(numbers.items()):
            if isinstance(value, int | float):
                shown = decimal(int(value)) if key.endswith("bytes") else f"{value:,}"
                table.add_row(key.replace("_", " "), shown)
        console.print(table)
        hits = sum(value for key, value in numbers.items() if "dedup" in key or "duplicate" in key)
        check(hits > 0, "the second copy of the tree was recognised block by block")
        return "the second copy cost almost nothing"

    def stop(self) -> str:
        """Unmount; every daemon ends cleanly."""
        self.cluster.down()
        for node in self.cluster.nodes:
            check(not os.path.ismount(node.mount), f"{node.mount} is unmounted")
            check(node.state() == "gone", f"{node.name} has ended")
        return "all unmounted, all ended"

    def steps(self) -> list[Callable[[], str]]:
        """Return what happens, in order."""
        return [
            self.start,
            self.copy_a_tree,
            self.append_together,
            self.use_a_disk_image,
            self.lose_a_node,
            self.fight_for_a_file,
            self.look_into_the_store,
            self.stop,
        ]


def library(target: Path, files: int) -> Path:
    """Copy the first `files` files of the standard library aside, to have a still source."""
    source = Path(sysconfig.get_path("stdlib"))
    skipped = ("site-packages", "dist-packages", "__pycache__")
    wanted = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not path.is_symlink() and not set(skipped) & set(path.parts)
    ]
    random.Random(1).shuffle(wanted)
    for path in wanted[:files]:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return target


def compare(source: Path, copy: Path, what: str) -> None:
    """Compare two trees byte by byte, both ways."""
    names = {path.relative_to(source) for path in source.rglob("*")}
    seen = {path.relative_to(copy) for path in copy.rglob("*")}
    check(names == seen, f"{copy} has the same {len(names)} names")
    different = [
        str(name)
        for name in track(sorted(names), description=what, console=console, transient=True)
        if (source / name).is_file() and not filecmp.cmp(source / name, copy / name, shallow=False)
    ]
    check(not different, f"{copy} has the same bytes; different: {different[:3]}")


def check(so: bool, what: str) -> None:  # noqa: FBT001  (the statement that is checked)
    """Raise NotAsSaid unless it is so."""
    if not so:
        raise NotAsSaid(what)


def wait(so: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    """Wait until it is so; raises NotAsSaid when it takes too long."""
    deadline_s = time.monotonic() + timeout_s
    while not so():
        check(time.monotonic() < deadline_s, f"within {timeout_s:g} s: {what}")
        time.sleep(0.01)


def run(*command: object) -> str:
    """Run a program; raises NotAsSaid with its words if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    check(done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def together(*works: Callable[[], None]) -> None:
    """Do all at once; raises the first failure."""
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise NotAsSaid(str(failures[0]))


@contextlib.contextmanager
def limited(cluster: Cluster) -> Iterator[None]:
    """Take the daemons away when it takes too long, so that nothing waits for ever."""
    timer = threading.Timer(LIMIT_S, clear_away, (cluster,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        clear_away(cluster)


def clear_away(cluster: Cluster) -> None:
    """End every daemon that still runs, and unmount."""
    for node in cluster.nodes:
        if node.process and processes.send(node.process, signal.SIGKILL):
            processes.wait_gone(node.process, 10)
        if node.supervisor:
            processes.wait_gone(node.supervisor, 15)
        with contextlib.suppress(SetupError):
            clear_mount(node.mount)


def show_logs(cluster: Cluster) -> None:
    """Print the end of each daemon's log, to understand what went wrong."""
    for node in cluster.nodes:
        with contextlib.suppress(OSError):
            lines = node.log.read_text("utf-8", "replace").splitlines()[-8:]
            console.print(Panel("\n".join(lines), title=f"log of {node.name}"), markup=False)
        with contextlib.suppress(NotAnswering):
            reply = control.ask(node.brick / "control.sock", "status")
            console.print(msgspec.json.encode(reply).decode(), markup=False)


def main() -> int:
    """Show every step; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1200, help="how much of the library to copy")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="clusterfs-demo-"))
    cluster = Cluster(folder / "cluster")
    started_s = time.monotonic()
    try:
        with limited(cluster):
            demonstration = Demonstration(cluster, folder, arguments.files)
            for number, step in enumerate(demonstration.steps(), 1):
                console.print(f"\n[bold]{number}. {step.__doc__}[/]")
                console.print(f"   [green]as said:[/] {step()}")
    except (NotAsSaid, SetupError, OSError) as failure:
        console.print(f"   [red]NOT as said:[/] {failure}")
        show_logs(cluster)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(
        f"\n[bold green]Everything was as said[/] ({time.monotonic() - started_s:.0f} s)."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
