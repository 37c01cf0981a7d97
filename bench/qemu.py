"""What virtual machines get from the volume: `python -m bench qemu`.

  * the data rows of an image, by fio with libaio and O_DIRECT (which is what QEMU's cache=none,
    aio=native does) and by `qemu-img bench`; on 1, 2 and 3 nodes with as many copies, and on the
    local filesystem below, in turn;
  * file locks a second: cached at one node, and passed between two nodes that both want them;
  * the time to clone an image, full and sparse; and again, when its map pages are shared already;
  * a boot storm: N clones of one image read at once through O_DIRECT by one node that has nothing
    in RAM, with the size of its chunk cache afterwards; beside N copies on the local filesystem;
  * SQLite, with its journal and without: transactions, fsyncs of the brick and bytes logged.

All daemons share this machine. Writes bench/qemu.json and prints Markdown.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import re
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench import fio
from clusterfs.cli.control import find_socket
from clusterfs.cli.dev import Cluster, Node
from clusterfs.control import ask

RESULTS = Path(__file__).with_name("qemu.json")
JOBS: dict[str, tuple[str, list[str], int]] = {
    "4 KiB random read, QD1": ("iops", ["--rw=randread", "--bs=4k"], 1),
    "4 KiB random read, QD32": ("iops", ["--rw=randread", "--bs=4k"], 32),
    "4 KiB random write, QD1": ("iops", ["--rw=randwrite", "--bs=4k"], 1),
    "4 KiB random write, QD32": ("iops", ["--rw=randwrite", "--bs=4k"], 32),
    "1 MiB sequential read, QD1": ("MiB/s", ["--rw=read", "--bs=1m"], 1),
    "1 MiB sequential write, QD1": ("MiB/s", ["--rw=write", "--bs=1m"], 1),
}
QEMU_IMG = "qemu-img bench, 4 KiB write, QD32"
QEMU_IMG_WRITES = 4000
STORM_MIB = 64
MIB = 1 << 20
BUILT = Path(sys.prefix) / "share" / "clusterfs-sqlite" / "libsqlite3.so.0"
_FLOCK = struct.Struct("hhqqi4x")
Rows = dict[str, dict[str, float]]


class Way(NamedTuple):
    """How SQLite is told to be atomic."""

    journal: str
    marked: bool  # with user.clusterfs.atomic_fsync


BATCH = "batch atomic write (F2FS's ioctls)"
WAYS = {
    "rollback journal": Way("DELETE", marked=False),
    "write-ahead log": Way("WAL", marked=False),
    "atomic_fsync, no journal on disk": Way("MEMORY", marked=True),
}


def main(words: list[str]) -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="bench qemu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=8, help="rather fewer rounds than longer")
    parser.add_argument("--runtime", type=float, default=2, help="seconds of each job")
    parser.add_argument("--clone-gib", type=int, default=10)
    parser.add_argument("--clones", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--transactions", type=int, default=200)
    parser.add_argument(
        "--sqlite", type=Path, default=BUILT, help="one with SQLITE_ENABLE_BATCH_ATOMIC_WRITE"
    )
    parser.add_argument("--only-sqlite", action="store_true", help="measure and record that alone")
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    found = sqlite_alone(given) if given.only_sqlite else everything(given)
    kept = json.loads(given.json.read_text()) if given.only_sqlite and given.json.exists() else {}
    given.json.write_text(json.dumps(kept | found, indent=2) + "\n")
    print("\n\n".join(table(name, rows) for name, rows in found.items()))
    return 0


def everything(given: argparse.Namespace) -> dict[str, Rows]:
    """Return all tables."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clusterfs-bench-")))
        clusters = {n: stack.enter_context(running(folder / f"c{n}", n)) for n in (1, 2, 3)}
        say("three clusters run")
        places = {f"R = {n}": cluster.nodes[0].mount for n, cluster in clusters.items()}
        found = {
            "image": images(places | {"local": folder}, given),
            "locks": locks(clusters[3].nodes, given.runtime),
            "sqlite": atomic(clusters[3].nodes[0], given.transactions, given.sqlite),
            "clone": cloning({n: c.nodes[0].mount for n, c in clusters.items()}, given),
        }
        found["boot storm"] = storm(clusters[1], folder, given.clones)
    return found


def sqlite_alone(given: argparse.Namespace) -> dict[str, Rows]:
    """Return the table of SQLite."""
    with (
        tempfile.TemporaryDirectory(prefix="clusterfs-bench-") as folder,
        running(Path(folder), 3) as cluster,
    ):
        return {"sqlite": atomic(cluster.nodes[0], given.transactions, given.sqlite)}


def say(text: str) -> None:
    """Tell whoever waits where this is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def running(folder: Path, nodes: int) -> Iterator[Cluster]:
    """Run a cluster with as many copies as nodes, whose chunk cache takes a whole small image."""
    cluster = Cluster(folder)
    cluster.configure(nodes, nodes)
    for node in cluster.nodes:
        lines = node.config.read_text()
        node.config.write_text(f"chunk_cache_mib = {4 * STORM_MIB}\n{lines}")
    cluster.up(nodes, nodes)
    try:
        yield cluster
    finally:
        cluster.down()


# -- data ---------------------------------------------------------------------------------------


def images(places: dict[str, Path], given: argparse.Namespace) -> Rows:
    """Return the medians of rounds that take all places in turn, in about half of the time."""
    begun_s, runtime_s = time.monotonic(), given.runtime
    disks = {column: fio.lay_out(place / "image") for column, place in places.items()}
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(given.rounds):
        spent_s = time.monotonic() - begun_s
        if number and spent_s * (number + 1) / number > given.minutes * 30:
            say(f"no time for round {number + 1}")
            break
        say(f"the image, round {number + 1} of {given.rounds}")
        for row, (unit, job, depth) in JOBS.items():
            for column, image in disks.items():
                rates = fio.queued(image, job, depth, runtime_s)
                samples[f"{row}, {unit}"][column].append(rates[unit != "iops"])
        for column, image in disks.items():
            samples[f"{QEMU_IMG}, iops"][column].append(qemu_img(image))
    return {
        row: {column: statistics.median(values) for column, values in columns.items()}
        for row, columns in samples.items()
    }


def qemu_img(image: Path) -> float:
    """Return writes per second, as QEMU itself counts them."""
    command = ["qemu-img", "bench", "-w", "-f", "raw", "-t", "none", "-i", "native", "-d", "32"]
    command += ["-s", "4096", "-c", str(QEMU_IMG_WRITES), str(image)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    taken = re.search(r"completed in ([\d.]+) seconds", said)
    assert taken, said
    return QEMU_IMG_WRITES / float(taken[1])


# -- locks --------------------------------------------------------------------------------------


def locks(nodes: list[Node], runtime_s: float) -> Rows:
    """Return locks (each unlocked again) a second, by programs on one node and on two."""
    say("file locks")
    paths = [node.mount / "locked" for node in nodes]
    paths[0].touch()
    return {
        "cached at one node": {"locks/s": sum(lockers(paths[:1], runtime_s))},
        "two nodes that want one byte": {"locks/s": sum(lockers(paths[:2], runtime_s))},
    }


def lockers(paths: list[Path], runtime_s: float) -> list[float]:
    """Let a program on each path lock and unlock a byte; return their rates."""
    command = [sys.executable, "-m", "bench.qemu", "--lock"]
    programs = [
        subprocess.Popen([*command, str(path), str(runtime_s)], stdout=subprocess.PIPE, text=True)
        for path in paths
    ]
    return [float(program.communicate()[0]) for program in programs]


def lock(path: Path, runtime_s: float) -> float:
    """Lock and unlock a byte for a while; return how often a second."""
    with path.open("r+b") as file:
        taken = [_FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK)]
        fcntl.fcntl(file, fcntl.F_SETLKW, taken[0])
        count, start_s = 0, time.perf_counter()
        while time.perf_counter() - start_s < runtime_s:
            fcntl.fcntl(file, fcntl.F_SETLKW, taken[1])
            fcntl.fcntl(file, fcntl.F_SETLKW, taken[0])
            count += 1
        return count / (time.perf_counter() - start_s)


# -- clones -------------------------------------------------------------------------------------


def cloning(mounts: dict[int, Path], given: argparse.Namespace) -> Rows:
    """Return the seconds to clone images of which every block is written, and sparse ones.

    mounts: by how many nodes their cluster has; the largest image is on the smallest only, and
    left out if writing it would take more than a third of the time there is.
    """
    found: Rows = {}
    for copies, mount in sorted(mounts.items()):
        begun_s = time.monotonic()
        for size in sorted({1, given.clone_gib}) if copies == 1 else [1]:
            if (time.monotonic() - begun_s) * size > given.minutes * 20:
                say(f"no time to write {size} GiB")
                break
            say(f"clone of {size} GiB, R = {copies}")
            found[f"clone of {size} GiB, written, R = {copies}"] = cloned(mount, size, size)
        found[f"clone of 1,000 GiB with 1 MiB in it, R = {copies}"] = cloned(mount, 1000, 0)
    return found


def cloned(mount: Path, span_gib: int, written_gib: int) -> dict[str, float]:
    """Return the seconds that `clusterfs clone` has an image of this kind held, twice in a row."""
    image = mount / "image"
    piece = random.Random(written_gib).randbytes(MIB)
    with image.open("wb", buffering=0) as file:
        for _ in range(max(1, written_gib << 10)):  # repeated, or it would fill the disk
            file.write(piece)
        file.truncate(span_gib << 30)
        os.fsync(file.fileno())
    targets = [mount / "clone-1", mount / "clone-2"]
    seconds = [asked(image, target) for target in targets]
    for path in (image, *targets):
        path.unlink()
    return {"first, s": seconds[0], "second, s": seconds[1]}


def asked(image: Path, target: Path) -> float:
    """Let the daemon clone a file, as `clusterfs clone` does; return the seconds."""
    with target.open("xb") as file:
        start_s = time.perf_counter()
        numbers = {"source": image.stat().st_ino, "target": os.fstat(file.fileno()).st_ino}
        ask(find_socket(str(image.parent)), "clone", timeout_s=600, **numbers)
        os.fsync(file.fileno())
        return time.perf_counter() - start_s


def clone(image: Path, target: Path) -> float:
    """Share all blocks, as `clusterfs clone` and cp --reflink do; return the seconds."""
    start_s = time.perf_counter()
    with image.open("rb") as source, target.open("wb") as file:
        left = image.stat().st_size
        while left:
            left -= os.copy_file_range(source.fileno(), file.fileno(), left)
        os.fsync(file.fileno())
    return time.perf_counter() - start_s


def storm(cluster: Cluster, local: Path, numbers: list[int]) -> Rows:
    """Return speed and memory of N clones that are read at once, from nothing."""
    say("boot storm")
    place = cluster.nodes[0].mount / "storm"
    place.mkdir()
    content = random.Random(1).randbytes(STORM_MIB * MIB)
    (place / "0").write_bytes(content)
    (local / "0").write_bytes(content)
    for number in range(1, max(numbers)):
        clone(place / "0", place / str(number))
        (local / str(number)).write_bytes(content)
    found: Rows = {}
    for number in numbers:
        cluster.down()
        cluster.up()
        store = cluster.nodes[0].ask("statistics")["statistics"]["store"]
        found[f"{number} clones"] = {
            "MiB/s": read_all(place, number),
            "local copies, MiB/s": read_all(local, number),
            "chunk cache before, MiB": store["cached_bytes"] / MIB,
            "chunk cache after, MiB": cached_mib(cluster.nodes[0]),
        }
    return found


def cached_mib(node: Node) -> float:
    """Return how much memory a node's chunk cache takes."""
    return float(node.ask("statistics")["statistics"]["store"]["cached_bytes"]) / MIB


def read_all(folder: Path, number: int) -> float:
    """Read so many images at once past the page cache; return MiB/s of all together."""

    def read(path: Path) -> int:
        command = ["dd", f"if={path}", "of=/dev/null", "bs=256k", "iflag=direct", "status=none"]
        return subprocess.run(command, check=True).returncode

    start_s = time.perf_counter()
    with ThreadPoolExecutor(number) as pool:
        list(pool.map(read, [folder / str(n) for n in range(number)]))
    return number * STORM_MIB / (time.perf_counter() - start_s)


# -- all or nothing -----------------------------------------------------------------------------


def atomic(node: Node, transactions: int, library: Path) -> Rows:
    """Return what a transaction of SQLite costs in each way of making it atomic."""
    say("SQLite")
    found = {name: in_one_way(node, name, way, transactions) for name, way in WAYS.items()}
    # That library takes the place of the one that Python would load.
    command = [sys.executable, "-m", "bench.qemu", "--batch", str(node.folder)]
    environment = os.environ | {"LD_PRELOAD": str(library.absolute())}
    done = subprocess.run(
        [*command, str(transactions)], env=environment, stdout=subprocess.PIPE, check=True
    )
    found[BATCH] = json.loads(done.stdout)
    return found


def batch(node: Node, transactions: int) -> dict[str, float]:
    """Measure the SQLite of this process, which must be built for it."""
    with contextlib.closing(sqlite3.connect(":memory:")) as data:
        options = {option for (option,) in data.execute("PRAGMA compile_options")}
    assert "ENABLE_BATCH_ATOMIC_WRITE" in options, "this libsqlite3 is built without it"
    return in_one_way(node, BATCH, Way("DELETE", marked=False), transactions)


def in_one_way(node: Node, name: str, way: Way, transactions: int) -> dict[str, float]:
    """Return what a transaction costs with this way's settings."""
    folder = node.mount / name.partition(" ")[0]
    folder.mkdir()
    if way.marked:
        os.setxattr(folder, "user.clusterfs.atomic_fsync", b"1")
    with contextlib.closing(sqlite3.connect(folder / "data", isolation_level=None)) as data:
        data.execute(f"PRAGMA journal_mode = {way.journal}")
        data.execute("PRAGMA synchronous = FULL")
        data.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, pad TEXT)")
        data.execute("BEGIN")
        data.executemany("INSERT INTO t VALUES (?, 0, ?)", [(n, "x" * 200) for n in range(500)])
        data.execute("COMMIT")
        return cost(node, transactions, lambda: update(data))


def update(data: sqlite3.Connection) -> None:
    """Change rows on several pages."""
    data.execute("BEGIN IMMEDIATE")
    data.execute("UPDATE t SET n = n + 1 WHERE id % 50 = 0")
    data.execute("COMMIT")


def cost(node: Node, count: int, work: Callable[[], None]) -> dict[str, float]:
    """Do something so often; return its rate, and what the node's brick had to do each time."""

    def spent() -> list[int]:
        store = node.ask("statistics")["statistics"]["store"]
        return [store["syncs"], store["log_bytes_written"]]

    before, start_s = spent(), time.perf_counter()
    for _ in range(count):
        work()
    taken_s = time.perf_counter() - start_s
    syncs, logged = (new - old for new, old in zip(spent(), before, strict=True))
    return {
        "transactions/s": count / taken_s,
        "fsyncs of the brick, each": syncs / count,
        "KiB logged, each": logged / count / 1024,
    }


def table(name: str, rows: Rows) -> str:
    """Return rows as Markdown."""
    columns = list(next(iter(rows.values())))
    lines = [f"| {name} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row, values in rows.items():
        shown = [f"{values[c]:,.2f}" if values[c] < 20 else f"{values[c]:,.0f}" for c in columns]
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    _, step, place, number = sys.argv
    if step == "--lock":
        print(lock(Path(place), float(number)))
    else:
        print(json.dumps(batch(Cluster(Path(place)).nodes[0], int(number))))
