"""Ordinary programs on real trees: cp, diff, git, tar, find, du."""

import os
import random
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

FILES = 5000


def run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    """Run a program; it fails with what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1", **environment},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 5,000 files in 250 directories: all sizes, modes, times, symlinks and hard links."""
    root = tmp_path_factory.mktemp("tree") / "tree"
    source = random.Random(5000)
    folders = [root]
    for number in range(250):
        folder = source.choice(folders[-40:]) / f"folder {number}"
        folder.mkdir(parents=True)
        folders.append(folder)
    last = root / "folder 0" / "first"
    for number in range(FILES):
        path = source.choice(folders) / f"file-{number}"
        kind = source.random()
        if number and kind < 0.02:
            path.symlink_to(os.path.relpath(last, path.parent))
            continue
        if number and kind < 0.04:
            path.hardlink_to(last)
            continue
        size = 0 if kind < 0.1 else int(source.expovariate(1 / 6000))
        path.write_bytes(source.randbytes(size) if kind < 0.8 else b"same again\n" * (size // 11))
        path.chmod(source.choice([0o644, 0o600, 0o755, 0o444]))
        os.utime(path, ns=(10**18, 10**18 + source.randrange(10**15)))
        last = path
    return root


def listing(root: Path) -> str:
    """What find says of every file: type, mode, links, size, time, target."""
    said = run("find", ".", "-printf", r"%p %y %m %n %s %T@ %l\n", cwd=root, LC_ALL="C")
    return "\n".join(sorted(drop_sizes_of_directories(line) for line in said.splitlines()))


def drop_sizes_of_directories(line: str) -> str:
    head, kind, rest = line.partition(" d ")
    return f"{head}{kind}{rest.split(' ')[0]}" if kind else line


@pytest.mark.timeout(1800)
def test_a_tree_copied_on_one_node_is_the_same_on_the_others(
    folders: list[Path], tree: Path
) -> None:
    run("cp", "-a", tree, folders[0] / "copy")
    run("diff", "-r", "--no-dereference", tree, folders[1] / "copy")
    assert listing(folders[2] / "copy") == listing(tree)
    run("rm", "-r", folders[2] / "copy")
    assert list(folders[0].iterdir()) == []


@pytest.mark.timeout(1800)
def test_git_works_inside(folders: list[Path], tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0"]
    origin.mkdir()
    run(*git, "init", "-q", "-b", "main", cwd=origin)
    source = random.Random(7)
    for commit in range(5):
        for number in range(60):
            path = origin / f"d{number % 7}" / f"f{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{source.random()}\n" for _ in range(30)))
        run(*git, "add", ".", cwd=origin)
        run(*git, "commit", "-q", "-m", f"commit {commit}", cwd=origin)
    run(*git, "clone", "-q", "--no-local", origin, folders[0] / "clone")
    run(*git, "fsck", "--strict", "--full", cwd=folders[1] / "clone")
    (folders[2] / "clone" / "new").write_text("from node 3\n")
    run(*git, "add", "new", cwd=folders[2] / "clone")
    run(*git, "commit", "-q", "-m", "from node 3", cwd=folders[2] / "clone")
    assert "from node 3" in run(*git, "log", "-1", "--stat", cwd=folders[0] / "clone")
    run(*git, "gc", "-q", cwd=folders[0] / "clone")
    assert run(*git, "status", "--porcelain", cwd=folders[1] / "clone") == ""
    run(*git, "fsck", "--strict", "--full", cwd=folders[1] / "clone")


@pytest.mark.timeout(1800)
def test_a_tree_is_walked_on_two_nodes_while_the_third_unpacks_it(
    folders: list[Path], tree: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "tree.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(tree, "tree")
    done = threading.Event()
    problems: list[str] = []
    walks = [0, 0]

    def walk(node: int, *command: object) -> None:
        while not (walks[node - 2] and done.is_set()):
            said = subprocess.run(
                [str(word) for word in command], capture_output=True, text=True, check=False
            )
            if said.returncode:
                problems.append(f"n{node}: {said.stderr[-500:]}")
            walks[node - 2] += 1

    walkers = [
        threading.Thread(target=walk, args=(2, "find", folders[1], "-type", "f", "-size", "+1")),
        threading.Thread(target=walk, args=(3, "du", "-s", folders[2])),
    ]
    for walker in walkers:
        walker.start()
    try:
        run("tar", "-P", "-xf", archive, "-C", folders[0])
    finally:
        done.set()
        for walker in walkers:
            walker.join()
    assert problems == []
    assert min(walks) > 0
    run("diff", "-r", "--no-dereference", tree, folders[1] / "tree")
