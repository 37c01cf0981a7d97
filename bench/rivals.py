"""`python -m bench rivals`: the same work here, on GlusterFS, MooseFS and CephFS, on one machine.

Each keeps three copies of everything and is used through one of its mounts; all servers share the
machine. The rows are those of `make bench`, measured in turn. GlusterFS: three bricks, replica 3,
default options. MooseFS: one master and three chunk servers, goal 3, default options; with these it
does not wait for disks, not even in fsync. CephFS: bench/ceph.py.

Needs Debian's glusterfs-server, moosefs-master, moosefs-chunkserver, moosefs-client, ceph-mon,
ceph-mgr, ceph-osd, ceph-mds, ceph-fuse and ceph-common, and root: GlusterFS takes no loopback
address, so all run in a network namespace that has another one.
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
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench import ceph, files, fio
from bench.servers import ADDRESS, COPIES, end, mounted, namespace, retried, run, wait_for
from clusterfs.cli.dev import Cluster

RESULTS = Path(__file__).with_name("rivals.json")
PORT = 24007
OURS, GLUSTER, MOOSE, CEPH = "clusterfs", "GlusterFS", "MooseFS", "CephFS"
_NEEDED = (
    *("glusterd", "gluster", "glusterfs", "mfsmaster", "mfschunkserver", "mfsmount"),
    *ceph.NEEDED,
)
_GLUSTERD = """volume management
    type mgmt/glusterd
    option working-directory {folder}/state
    option run-directory {folder}/run
    option glusterd-sockfile {folder}/run/glusterd.sock
    option transport-type socket
    option transport.socket.bind-address {address}
    option transport.socket.listen-port {port}
end-volume
"""
_MASTER = """WORKING_USER = root
WORKING_GROUP = root
NICE_LEVEL = 0
DATA_PATH = {folder}
EXPORTS_FILENAME = {folder}/exports
TOPOLOGY_FILENAME = {folder}/topology
"""
_CHUNK_SERVER = """WORKING_USER = root
WORKING_GROUP = root
NICE_LEVEL = 0
DATA_PATH = {folder}
HDD_CONF_FILENAME = {folder}/disks
MASTER_HOST = {address}
CSSERV_LISTEN_PORT = {port}
"""


def main(words: list[str]) -> int:
    """Measure, print Markdown, record."""
    parser = argparse.ArgumentParser(prog="bench rivals", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--runtime", type=float, default=3, help="seconds of each fio job")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args(words)
    missing = [program for program in _NEEDED if not shutil.which(program)]
    if missing:
        print(f"missing: {', '.join(missing)} (see the docstring of bench/rivals.py)")
        return 1
    with tempfile.TemporaryDirectory(prefix="clusterfs-bench-") as folder:
        table = measure(Path(folder), arguments.rounds, arguments.runtime)
    facts = {"cpus": os.cpu_count(), "kernel": platform.release(), "rounds": arguments.rounds}
    arguments.json.write_text(json.dumps({"machine": facts, "medians": table}, indent=2) + "\n")
    print(markdown(table))
    return 0


def measure(folder: Path, rounds: int, runtime_s: float) -> dict[str, dict[str, float]]:
    """Return row -> system -> median of the rounds."""
    archive = folder / "files.tar"
    count = files.make_archive(archive)
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    systems: dict[str, Callable[[Path], contextlib.AbstractContextManager[Path]]]
    systems = {OURS: ours, GLUSTER: gluster, MOOSE: moose, CEPH: ceph.ceph}
    with (
        contextlib.ExitStack() as stack,
        Progress(console=Console(stderr=True)) as progress,
    ):
        places = {
            name: stack.enter_context(start(folder / name)) for name, start in systems.items()
        }
        images = {name: fio.lay_out(place / "image") for name, place in places.items()}
        task = progress.add_task("measuring", total=rounds * (len(fio.JOBS) + 2) * len(places))
        for _ in range(rounds):
            for row in fio.JOBS:
                for name, image in images.items():
                    samples[row][name].append(fio.measure(image, row, runtime_s))
                    progress.advance(task)
            for name, place in places.items():
                for row, rate in files.measure(place).items():
                    samples[row][name].append(rate)
                progress.advance(task)
            for name, place in places.items():
                rate = files.untar(archive, place, count)
                samples[f"untar of {count:,} files"][name].append(rate)
                progress.advance(task)
    return {
        row: {name: statistics.median(values) for name, values in found.items()}
        for row, found in samples.items()
    }


def markdown(table: dict[str, dict[str, float]]) -> str:
    """Return the table of docs/performance.md."""
    rivals = (GLUSTER, MOOSE, CEPH)
    titles = ["row", OURS, *rivals, *(f"to {rival}" for rival in rivals)]
    lines = [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]
    for row, found in table.items():
        rates = [f"{found[name]:,.0f}" for name in (OURS, *rivals)]
        ratios = [f"{found[OURS] / found[rival]:.2f}" for rival in rivals]
        lines.append(f"| {' | '.join([row, *rates, *ratios])} |")
    return "\n".join(lines)


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[Path]:
    """Run three nodes; yield the first one's mount."""
    cluster = Cluster(folder)
    cluster.up(COPIES, COPIES)
    try:
        yield cluster.nodes[0].mount
    finally:
        cluster.down()


@contextlib.contextmanager
def gluster(folder: Path) -> Iterator[Path]:
    """Run a volume of three bricks; yield its mount."""
    for part in ("state", "run", "mount", *(f"brick{n}" for n in range(COPIES))):
        (folder / part).mkdir(parents=True)
    (folder / "glusterd.vol").write_text(
        _GLUSTERD.format(folder=folder, address=ADDRESS, port=PORT)
    )
    with namespace(folder.name) as inside, contextlib.ExitStack() as stack:
        manager = subprocess.Popen(
            [*inside, "glusterd", "-N", "-f", f"{folder}/glusterd.vol", "-l", f"{folder}/log"]
        )
        stack.callback(end, manager)
        socket = f"--glusterd-sock={folder}/run/glusterd.sock"
        command = [*inside, "gluster", "--mode=script", socket, "volume"]
        bricks = [f"{ADDRESS}:{folder}/brick{n}" for n in range(COPIES)]
        retried([*command, "create", "bench", "replica", str(COPIES), *bricks, "force"])
        stack.callback(end_noted, folder / "run")
        retried([*command, "start", "bench"])
        with mounted(
            [
                *(*inside, "glusterfs", "-N", f"--volfile-server={ADDRESS}"),
                *("--volfile-id=bench", "-l", f"{folder}/mount.log", f"{folder}/mount"),
            ],
            folder / "mount",
        ) as place:
            yield place


@contextlib.contextmanager
def moose(folder: Path) -> Iterator[Path]:
    """Run a master and three chunk servers; yield a mount whose files have three copies."""
    master = folder / "master"
    (folder / "mount").mkdir(parents=True)
    master.mkdir()
    (master / "metadata.mfs").write_bytes(b"MFSM NEW")
    (master / "exports").write_text("* / rw,alldirs,admin,maproot=0:0\n")
    (master / "topology").touch()
    (master / "master.cfg").write_text(_MASTER.format(folder=master))
    with namespace(folder.name) as inside, contextlib.ExitStack() as stack:
        serve = [*inside, "mfsmaster", "-f", "-c", f"{master}/master.cfg", "start"]
        stack.callback(end, subprocess.Popen(serve, stderr=subprocess.DEVNULL))
        for number in range(COPIES):
            place = folder / f"chunks{number}"
            (place / "disk").mkdir(parents=True)
            (place / "disks").write_text(f"{place}/disk\n")
            (place / "server.cfg").write_text(
                _CHUNK_SERVER.format(folder=place, address=ADDRESS, port=9422 + 10 * number)
            )
            serve = [*inside, "mfschunkserver", "-f", "-c", f"{place}/server.cfg", "start"]
            stack.callback(end, subprocess.Popen(serve, stderr=subprocess.DEVNULL))
        with mounted(
            [*inside, "mfsmount", "-f", "-H", ADDRESS, str(folder / "mount")], folder / "mount"
        ) as mount:
            run([*inside, "mfssetgoal", "-r", str(COPIES), str(mount)])
            wait_for(lambda: shutil.disk_usage(mount).total > 0, "chunk servers have joined")
            yield mount


def end_noted(folder: Path) -> None:
    """End the servers that glusterd started: it notes their process ids in this folder."""
    for noted in folder.rglob("*.pid"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(noted.read_text()), signal.SIGKILL)
