"""`make bench`: one table of this filesystem beside its bounds, all measured in one run.

The columns: a filesystem of pyfuse3 that does nothing (what the transport allows), one node, three
nodes with three copies of everything, and the local filesystem below them all. Each round measures
each row on every column, one after the other, so that a busy moment of the machine hits all; the
table has the medians of the rounds. Writes bench/results.json and prints Markdown.

`python -m bench store` measures the store alone, see bench/store.py; `python -m bench peers` the
store beside BorgBackup, see bench/store_peers.py; `python -m bench rivals` the whole filesystem
beside GlusterFS, MooseFS and CephFS, see bench/rivals.py; `python -m bench failover` the loss of a
node, see bench/failover.py; `python -m bench membership` how long a cluster takes to grow, and
what a node copies that was away, see bench/membership.py; `python -m bench qemu` what virtual
machines get from it, see bench/qemu.py.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench import failover, files, fio, membership, qemu, rivals, store, store_peers
from bench.dlm import report
from clusterfs.cli.dev import Cluster

RESULTS = Path(__file__).with_name("results.json")
NOOP = Path(__file__).with_name("micro") / "noop_fuse.py"
NOOP_ONLY_DATA = "no-op pyfuse3"
Table = dict[str, dict[str, float]]  # row -> column -> median
PARTS = {
    "dlm": report.main,
    "store": store.main,
    "peers": store_peers.main,
    "failover": failover.main,
    "membership": membership.main,
    "rivals": rivals.main,
    "qemu": qemu.main,
}


def main() -> int:
    """Measure, print, record. The name of a part first: that part alone."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # what was started is ended
    if part := PARTS.get(sys.argv[1] if len(sys.argv) > 1 else ""):
        return part(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runtime", type=float, default=3, help="seconds of each fio job")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clusterfs-bench-") as folder:
        table = measure(Path(folder), arguments.rounds, arguments.runtime)
    facts = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rounds": arguments.rounds,
        "fio_runtime_s": arguments.runtime,
    }
    arguments.json.write_text(json.dumps({"machine": facts, "medians": table}, indent=2) + "\n")
    print(markdown(table))
    return 0


def measure(folder: Path, rounds: int, runtime_s: float) -> Table:
    """Return the medians of interleaved rounds."""
    archive = folder / "files.tar"
    count = files.make_archive(archive)
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with columns(folder) as places, Progress(console=Console(stderr=True)) as progress:
        images = {column: fio.lay_out(place / "image") for column, place in places.items()}
        task = progress.add_task("measuring", total=rounds * (len(fio.JOBS) + 2) * len(places))
        for _ in range(rounds):
            for row in fio.JOBS:
                for column, image in images.items():
                    samples[row][column].append(fio.measure(image, row, runtime_s))
                    progress.advance(task)
            for column, place in places.items():
                if column != NOOP_ONLY_DATA:
                    for row, rate in files.measure(place).items():
                        samples[row][column].append(rate)
                progress.advance(task)
            for column, place in places.items():
                if column != NOOP_ONLY_DATA:
                    rate = files.untar(archive, place, count)
                    samples[f"untar of {count:,} files"][column].append(rate)
                progress.advance(task)
    return {
        row: {column: statistics.median(values) for column, values in found.items()}
        for row, found in samples.items()
    }


@contextlib.contextmanager
def columns(folder: Path) -> Iterator[dict[str, Path]]:
    """Set up what is compared; each place is an empty folder."""
    with contextlib.ExitStack() as stack:
        yield {
            NOOP_ONLY_DATA: stack.enter_context(noop(folder / "noop")),
            "1 node": stack.enter_context(cluster(folder / "one", 1)),
            "3 nodes": stack.enter_context(cluster(folder / "three", 3)),
            "local": stack.enter_context(local(folder / "local")),
        }


@contextlib.contextmanager
def cluster(folder: Path, nodes: int) -> Iterator[Path]:
    """Run a cluster; yield its first mount."""
    running = Cluster(folder)
    running.up(nodes, nodes)
    try:
        yield running.nodes[0].mount
    finally:
        running.down()


@contextlib.contextmanager
def local(folder: Path) -> Iterator[Path]:
    """Yield a folder of the filesystem that the bricks are on."""
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def noop(folder: Path) -> Iterator[Path]:
    """Mount the filesystem that answers every request at once and keeps nothing."""
    folder.mkdir()
    process = subprocess.Popen([sys.executable, str(NOOP), "--serve", str(folder)])
    try:
        while not folder.is_mount():
            assert process.poll() is None, "the no-op filesystem did not start"
            time.sleep(0.05)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False)
        process.wait(10)


def markdown(table: Table) -> str:
    """Return the medians as a Markdown table, with the ratios that matter."""
    names = list(next(iter(table.values())))
    lines = [
        "| row | unit | " + " | ".join(names) + " | 1 node / no-op | 3 nodes / local |",
        "|---|---|" + "---:|" * (len(names) + 2),
    ]
    for row, values in table.items():
        unit = fio.JOBS[row][0] if row in fio.JOBS else "files/s"
        shown = [f"{values[name]:,.0f}" if name in values else "-" for name in names]
        ratios = [_ratio(values, "1 node", NOOP_ONLY_DATA), _ratio(values, "3 nodes", "local")]
        lines.append(f"| {row} | {unit} | " + " | ".join([*shown, *ratios]) + " |")
    return "\n".join(lines)


def _ratio(values: dict[str, float], measured: str, against: str) -> str:
    if measured not in values or not values.get(against):
        return "-"
    return f"{values[measured] / values[against]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
