"""Random programs of system calls give on three nodes what they give in a local directory.

CLUSTERFS_SEED is the seed, CLUSTERFS_PROGRAMS how many programs, CLUSTERFS_STEPS how long each is.
A failure shows the program, cut down to what makes the difference.
"""

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from clusterfs.cli.dev import Cluster
from tests.mount.support.differential import Chance, Difference, Side, Step, run, shrunk, told

SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
PROGRAMS = int(os.environ.get("CLUSTERFS_PROGRAMS", "3"))
STEPS = int(os.environ.get("CLUSTERFS_STEPS", "150"))

Attempt = Callable[[Sequence[Step]], str]


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three nodes that a busy machine does not throw out: their handles would give EIO."""
    return make_cluster(settings={"lease_s": "60"})


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[Path]:
    """Return a directory of an ext4: this machine's own, or one in a file."""
    top = Path(tempfile.gettempdir())
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(top) and folder != top:
            folder.chmod(0o755)  # other users go through it
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True
    ).stdout
    if kind.strip() == "ext2/ext3":  # what stat calls it
        yield tmp_path
        return
    image, mounted = tmp_path / "image", tmp_path / "ext4"
    mounted.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image, "2G"], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.fixture
def attempt(folders: list[Path], reference: Path) -> Attempt:
    """Run a program in new directories; returns what differs, or nothing."""
    numbers = itertools.count()

    def try_it(program: Sequence[Step]) -> str:
        name = str(next(numbers))
        here = [folder / name for folder in folders]
        local = reference / name
        for top in (local, here[0]):
            top.mkdir()
            top.chmod(0o755)
        try:
            one = len(here) == 1
            run(
                program,
                Side([local], compares_accesses=one),
                Side(here, compares_accesses=one),
            )
        except Difference as difference:
            return str(difference)
        finally:
            shutil.rmtree(local)
            shutil.rmtree(here[0])
        return ""

    return try_it


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("nodes", [1, 3])  # only on one node access times are the same at once
def test_random_programs_do_what_they_do_locally(
    folders: list[Path], attempt: Attempt, nodes: int
) -> None:
    folders[0].chmod(0o755)
    del folders[nodes:]
    for number in range(PROGRAMS):
        seed = f"{SEED} {nodes} {number}"
        program = Chance(seed, nodes).program(STEPS)
        if attempt(program):
            small = shrunk(program, lambda cut: bool(attempt(cut)))
            pytest.fail(f"seed {seed}:\n{told(small)}\n{attempt(small)}")
