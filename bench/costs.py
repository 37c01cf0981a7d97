"""`python -m bench.costs`: what one operation costs each daemon of a cluster of three.

CPU time, messages and context switches are counted, not elapsed time, so the numbers hold on a
machine that others use too. With `--against TREE` a second cluster runs the code of another source
tree; both do each piece of work in turn, so a busy moment hits both.

The median of some rounds is shown. Columns: operations a second as the one client saw them; CPU
microseconds of an operation at all daemons and at each, the first being the one that is asked;
messages sent by all of them; voluntary context switches of the first, and of the others together.
"""

import argparse
import contextlib
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from clusterfs.cli.dev import Cluster

BLOCK = 4096
FILE_BLOCKS = 4096
TREE = Path(__file__).parents[1]


class Cost(NamedTuple):
    """What all daemons have used up at one instant; CPU in microseconds."""

    cpu_us: list[float]
    messages: int
    switches: list[int]


class Work:
    """The pieces of work, on one mount."""

    def __init__(self, place: Path, count: int) -> None:
        self.place = place
        self.count = count
        self.block = mmap.mmap(-1, BLOCK)
        self.megabyte = mmap.mmap(-1, 256 * BLOCK)
        self.random = random.Random(1)
        self.round = 0

    def names(self, prefix: str) -> Iterator[str]:
        """Return the names of this round's files."""
        for number in range(self.count):
            yield f"{self.place}/{prefix}-{self.round}-{number}"

    def create(self) -> int:
        """Make and close empty files."""
        for name in self.names("file"):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        return self.count

    def create_with_data(self) -> int:
        """Make files of 4 KiB."""
        for name in self.names("full"):
            file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(file, self.random.randbytes(BLOCK))
            os.close(file)
        return self.count

    def stat(self) -> int:
        """Stat each."""
        for name in self.names("file"):
            Path(name).stat()
        return self.count

    def read_files(self) -> int:
        """Open, read, close each."""
        for name in self.names("full"):
            Path(name).read_bytes()
        return self.count

    def rename(self) -> int:
        """Rename each."""
        for name, target in zip(self.names("file"), self.names("renamed"), strict=True):
            Path(name).rename(target)
        return self.count

    def unlink(self) -> int:
        """Unlink each."""
        for name in self.names("renamed"):
            Path(name).unlink()
        return self.count

    def mkdir(self) -> int:
        """Make directories."""
        for name in self.names("folder"):
            Path(name).mkdir()
        return self.count

    def rmdir(self) -> int:
        """Remove them."""
        for name in self.names("folder"):
            Path(name).rmdir()
        return self.count

    def image(self, flags: int) -> int:
        """Open the file that data goes to."""
        return os.open(self.place / "image", flags | os.O_DIRECT | os.O_CREAT, 0o644)

    def sequential_write(self) -> int:
        """Write 1 MiB at a time, all of it new."""
        file = self.image(os.O_WRONLY)
        for number in range(FILE_BLOCKS // 256):
            self.megabyte[:] = self.random.randbytes(256 * BLOCK)
            os.pwrite(file, self.megabyte, number * 256 * BLOCK)
        os.fsync(file)
        os.close(file)
        return FILE_BLOCKS // 256

    def sequential_read(self) -> int:
        """Read 1 MiB at a time."""
        file = self.image(os.O_RDONLY)
        for number in range(self.count):
            os.preadv(file, [self.megabyte], number * 256 % FILE_BLOCKS * BLOCK)
        os.close(file)
        return self.count

    def write_synced(self) -> int:
        """4 KiB, then fsync."""
        file = self.image(os.O_WRONLY)
        for _ in range(self.count):
            self.write_block(file)
            os.fsync(file)
        os.close(file)
        return self.count

    def write_random(self) -> int:
        """4 KiB anywhere."""
        file = self.image(os.O_WRONLY)
        for _ in range(4 * self.count):
            self.write_block(file)
        os.close(file)
        return 4 * self.count

    def write_block(self, file: int) -> None:
        """Write a block that is nowhere else."""
        self.block[:32] = self.random.randbytes(32)
        os.pwrite(file, self.block, self.random.randrange(FILE_BLOCKS) * BLOCK)

    def read_random(self) -> int:
        """4 KiB anywhere."""
        file = self.image(os.O_RDONLY)
        for _ in range(4 * self.count):
            os.preadv(file, [self.block], self.random.randrange(FILE_BLOCKS) * BLOCK)
        os.close(file)
        return 4 * self.count

    def all(self) -> dict[str, Callable[[], int]]:
        """Return the pieces in an order in which each finds what it needs."""
        return {
            "create": self.create,
            "create 4 KiB": self.create_with_data,
            "stat": self.stat,
            "read 4 KiB file": self.read_files,
            "rename": self.rename,
            "unlink": self.unlink,
            "mkdir": self.mkdir,
            "rmdir": self.rmdir,
            "write 1 MiB": self.sequential_write,
            "read 1 MiB": self.sequential_read,
            "write 4 KiB": self.write_random,
            "read 4 KiB": self.read_random,
            "write 4 KiB + fsync": self.write_synced,
        }


def spent(cluster: Cluster) -> Cost:
    """Return what every daemon has used so far."""
    cpu_us, messages, switches = [], 0, []
    for node in cluster.nodes:
        process = node.process
        assert process is not None
        cpu_us.append(time.clock_gettime(_cpu_clock(process.pid)) * 1e6)
        statistics = node.ask("statistics")["statistics"]
        messages += sum(peer["sent"] for peer in statistics["mesh"]["peers"].values())
        switches.append(_switches(process.pid))
    return Cost(cpu_us, messages, switches)


def _cpu_clock(pid: int) -> int:
    """Return the clock that counts a process's CPU time (clock_getcpuclockid(3)): threads, ns."""
    return (~pid << 3) | 2


def _switches(pid: int) -> int:
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError):  # a thread that ended bestwhile
            lines = status.read_text().splitlines()
            count += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))
    return count


def measure(cluster: Cluster, work: Callable[[], int]) -> dict[str, float]:
    """Do one piece of work; return what an operation costs."""
    before, start_s = spent(cluster), time.perf_counter()
    count = work()
    took_s, after = time.perf_counter() - start_s, spent(cluster)
    cpu = [(new - old) / count for new, old in zip(after.cpu_us, before.cpu_us, strict=True)]
    switches = [
        (new - old) / count for new, old in zip(after.switches, before.switches, strict=True)
    ]
    found = {"per_s": count / took_s, "cpu_us": sum(cpu)}
    found |= {f"cpu_us_n{number}": used for number, used in enumerate(cpu, 1)}
    found |= {"messages": (after.messages - before.messages) / count}
    return found | {"switches_n1": switches[0], "switches_others": sum(switches[1:])}


@contextlib.contextmanager
def running(tree: Path, folder: Path, nodes: int) -> Iterator[Cluster]:
    """Run a cluster of the code in that source tree."""
    environment = os.environ | {"PYTHONPATH": str(tree)}

    def dev(*words: str) -> None:
        command = [sys.executable, "-m", "clusterfs.cli.main", "dev", *words, "--dir", str(folder)]
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)

    dev("up", "--nodes", str(nodes))
    try:
        yield Cluster(folder)
    finally:
        dev("down")


def table(columns: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Return the medians of the rounds, one line for each piece of work and tree."""
    lines = []
    for row in next(iter(columns.values())):
        for label, rows in columns.items():
            samples = rows[row]
            middle = {key: median(sample[key] for sample in samples) for key in samples[0]}
            numbers = "".join(
                f"{middle[key]:10,.{0 if key == 'per_s' or 'cpu' in key else 1}f}" for key in middle
            )
            lines.append(f"{row:20}{label:8}{numbers}")
    heads = "".join(f"{key.removeprefix('switches_')[-9:]:>10}" for key in middle)
    return "\n".join([f"{'':28}{heads}", *lines])


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(prog="bench.costs", description=__doc__)
    parser.add_argument("--against", type=Path, help="another source tree, built")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--count", type=int, default=500, help="operations in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", help="only pieces of work whose name contains this")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    trees = {"this": TREE} | ({"other": arguments.against} if arguments.against else {})
    columns: dict[str, dict[str, list[dict[str, float]]]] = {label: {} for label in trees}
    with (
        tempfile.TemporaryDirectory(prefix="clusterfs-costs-") as folder,
        contextlib.ExitStack() as s,
    ):
        works = {}
        for label, tree in trees.items():
            cluster = s.enter_context(running(tree, Path(folder) / label, arguments.nodes))
            works[label] = (cluster, Work(cluster.nodes[0].mount, arguments.count))
        for number in range(arguments.rounds):
            for name in next(iter(works.values()))[1].all():
                for label, (cluster, work) in works.items():
                    work.round = number
                    if arguments.only and not _wanted(name, arguments.only):
                        continue
                    found = measure(cluster, work.all()[name])
                    columns[label].setdefault(name, []).append(found)
    print(json.dumps(columns) if arguments.json else table(columns))
    return 0


def _wanted(name: str, wanted: str) -> bool:
    """Tell whether a piece of work is to be measured, or leaves behind what one needs that is."""
    needed = {"create": ("stat", "rename", "unlink"), "rename": ("unlink",), "mkdir": ("rmdir",)}
    needed |= {"create 4 KiB": ("read 4 KiB file",), "write 1 MiB": ("read",)}
    return any(wanted in each for each in (name, *needed.get(name, ())))


if __name__ == "__main__":
    sys.exit(main())
