"""Growth and absence: what a resync copies, how long it takes, and that all replicas are equal.

`python -m bench membership growth --gib 5` fills one node, adds two, and shows their progress;
`python -m bench membership absence --gib 2 --minutes 10` lets one of three nodes miss that many
minutes of random writes, and says how much of them it copied when it came back. Both end with a
comparison of all replicas; the exit code is 1 if something differs.
"""

import argparse
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from clusterfs.cli.dev import Cluster
from clusterfs.errors import SetupError

_MIB = 1 << 20
_BLOCK = 4096
_LOOK_S = 2.0


def main(words: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench membership", description=__doc__)
    parser.add_argument("what", choices=["growth", "absence"])
    parser.add_argument("--gib", type=float, default=5)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="clusterfs-bench-") as folder:
        cluster = Cluster(Path(folder))
        try:
            if arguments.what == "growth":
                return growth(cluster, round(arguments.gib * 1024), arguments.seed)
            size_mib = round(arguments.gib * 1024)
            return absence(cluster, size_mib, arguments.minutes * 60, arguments.seed)
        finally:
            cluster.down()


def growth(cluster: Cluster, size_mib: int, seed: int) -> int:
    """Fill one node, then add two."""
    cluster.up(1)
    fill(cluster, size_mib, seed)
    begun_s = time.monotonic()
    with contextlib.suppress(SetupError):  # it waits for less long than this may take
        cluster.up(3)
    copied = until_synced(cluster, ["n2", "n3"])
    took_s = time.monotonic() - begun_s
    print(f"1 to 3 nodes, {size_mib} MiB: {copied / _MIB:.0f} MiB copied in {took_s:.0f} s")
    return compare(cluster)


def absence(cluster: Cluster, size_mib: int, away_s: float, seed: int) -> int:
    """Let n3 miss random writes, then come back."""
    cluster.up(3)
    image = fill(cluster, size_mib, seed)
    cluster.kill("n3")
    changed = scribble(image, size_mib * _MIB, away_s, random.Random(seed))
    begun_s = time.monotonic()
    with contextlib.suppress(SetupError):
        cluster.start("n3")
    copied = until_synced(cluster, ["n3"])
    took_s = time.monotonic() - begun_s
    print(
        f"{away_s:.0f} s away: {changed / _MIB:.1f} of {size_mib} MiB changed, "
        f"{copied / _MIB:.1f} MiB copied in {took_s:.0f} s"
    )
    return compare(cluster)


def fill(cluster: Cluster, size_mib: int, seed: int) -> Path:
    """Write data that is the same nowhere twice; returns the file."""
    rng = random.Random(seed)
    image = cluster.node("n1").mount / "image"
    with image.open("wb", buffering=0) as file:
        for _ in range(size_mib):
            file.write(rng.randbytes(_MIB))
        os.fsync(file.fileno())
    return image


def scribble(image: Path, size_bytes: int, for_s: float, rng: random.Random) -> int:
    """Overwrite random blocks for a while; returns how many bytes are not what they were."""
    end_s = time.monotonic() + for_s
    changed: set[int] = set()
    with image.open("r+b", buffering=0) as file:
        while time.monotonic() < end_s:
            for _ in range(64):
                block = rng.randrange(size_bytes // _BLOCK)
                os.pwrite(file.fileno(), rng.randbytes(_BLOCK), block * _BLOCK)
                changed.add(block)
            os.fsync(file.fileno())
    return len(changed) * _BLOCK


def until_synced(cluster: Cluster, names: list[str]) -> int:
    """Show the progress until these nodes are in sync; returns what they copied, in bytes."""
    nodes = [cluster.node(name) for name in names]
    while not all(node.ask("status", 30.0)["synced"] for node in nodes):
        for each in cluster.node("n1").ask("members", 30.0)["nodes"]:
            if resync := each["resync"]:
                left = "?" if resync["eta_s"] is None else f"{resync['eta_s']:.0f}"
                done = f"{resync['part']:.0%}, {resync['pulled_bytes'] / _MIB:.0f} MiB"
                print(f"  {each['name']}: {done}, {left} s left", flush=True)
        time.sleep(_LOOK_S)
    return sum(node.ask("status", 30.0)["resync"]["resync"]["pulled_bytes"] for node in nodes)


def compare(cluster: Cluster) -> int:
    """Compare all replicas; returns the exit code."""
    n1 = cluster.node("n1")
    n1.ask("compare", 30.0, action="start")
    _until(lambda: not n1.ask("compare", 30.0)["running"])
    found = n1.ask("compare", 30.0)
    print(f"replicas: {found['compared']} objects compared, {found['diverged']} differ")
    return 1 if found["diverged"] or found["unstable"] or not found["compared"] else 0


def _until(so: Callable[[], bool]) -> None:
    while not so():
        time.sleep(_LOOK_S)
