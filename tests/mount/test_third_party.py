"""Programs of others that check filesystems, or live on them, on three nodes."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

LIMIT_S = 500
# Stressors of stress-ng that check what they do, and how many of their rounds.
STRESSORS = {
    "access": 1,
    "chmod": 20,
    "chown": 20,
    "dentry": 100,
    "dir": 100,
    "dirdeep": 50,
    "dirmany": 10,
    "fallocate": 20,
    "fcntl": 20,
    "filename": 10,
    "flock": 200,
    "fstat": 2,
    "getdent": 20,
    "hdd": 200,
    "link": 5,
    "locka": 100,
    "lockf": 200,
    "lockofd": 200,
    "mknod": 20,
    "open": 100,
    "rename": 200,
    "seek": 200,
    "symlink": 5,
    "touch": 100,
    "utime": 200,
    "xattr": 1,
}
SIZES = {"fallocate": "--fallocate-bytes", "hdd": "--hdd-bytes", "seek": "--seek-size"}
VERIFIERS = (
    *("md5", "crc64", "crc32c", "crc32", "crc16", "crc7", "xxhash", "sha512", "sha256", "sha1"),
    *("sha3-224", "sha3-256", "sha3-384", "sha3-512"),
)


def run(folder: Path, *words: str | Path, stdin: str = "") -> str:
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("part", range(3))
def test_stress_ng_finds_nothing_wrong(folders: list[Path], part: int) -> None:
    for name, rounds in list(STRESSORS.items())[part::3]:
        said = run(
            folders[part],
            *("stress-ng", "--temp-path", ".", "--verify", "--timeout", "2s"),
            *(f"--{name}", "1", f"--{name}-ops", str(rounds)),
            *([SIZES[name], "1M"] if name in SIZES else []),
        )
        assert "fail:" not in said, said


def test_fio_verifies_in_every_way(folders: list[Path]) -> None:
    common = [
        *("fio", "--bs=4k", "--size=256k", "--rw=randwrite", "--randseed=5", "--minimal"),
        *("--direct=1", "--ioengine=libaio", "--iodepth=4", "--verify_fatal=1", "--thread"),
    ]
    jobs = []
    for name in VERIFIERS:
        jobs += [f"--name={name}", f"--filename={name}", f"--verify={name}"]
    jobs += ["--name=pattern", "--filename=pattern", "--verify=pattern", "--verify_pattern=0x5a%o"]
    run(folders[0], *common, "--do_verify=0", *jobs)
    run(folders[1], *common, "--verify_only", *jobs)


def test_sqlite_shells_on_three_nodes_write_one_database(folders: list[Path]) -> None:
    rows = 10
    run(folders[0], "sqlite3", "data", stdin="create table t(node, n, primary key(node, n));")
    failures: list[BaseException] = []

    def insert(node: int) -> None:
        insert = "begin immediate; insert into t values({}, {}); commit;"
        lines = [".timeout 120000", *(insert.format(node, number) for number in range(rows))]
        try:
            run(folders[node], "sqlite3", "-bail", "data", stdin="\n".join(lines))
        except BaseException as failure:  # noqa: BLE001  raised in the test's thread
            failures.append(failure)

    threads = [threading.Thread(target=insert, args=(node,)) for node in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    question = "pragma integrity_check; select count(*), count(distinct node) from t;"
    for folder in folders:
        assert run(folder, "sqlite3", "data", stdin=question).split() == ["ok", f"{3 * rows}|3"]


def test_git_works_on_one_repository_from_three_nodes(folders: list[Path]) -> None:
    git = ("git", "-c", "user.name=n", "-c", "user.email=n@localhost", "-c", "safe.directory=*")
    run(folders[0], *git, "init", "--quiet", "--initial-branch=main", "repository")
    for turn in range(6):
        place = folders[turn % 3] / "repository"
        (place / f"file {turn}").write_text("line\n" * 100 * turn)
        run(place, *git, "add", "--all")
        run(place, *git, "commit", "--quiet", "-m", f"turn {turn}")
        assert run(place, *git, "status", "--porcelain") == ""
    run(folders[1], *git, "clone", "--quiet", "repository", "clone")
    run(folders[2] / "repository", *git, "gc", "--quiet", "--prune=now")
    for folder in folders:
        for name in ("repository", "clone"):
            run(folder / name, *git, "fsck", "--strict")
            log = run(folder / name, *git, "log", "--format=%s")
            assert log.split("\n")[:-1] == [f"turn {turn}" for turn in (5, 4, 3, 2, 1, 0)]


def test_dbench_runs_through(folders: list[Path]) -> None:
    said = run(
        folders[0],
        *("dbench", "-c", "/usr/share/dbench/client.txt", "-t", "3", "-D", ".", "2"),
    )
    assert "Throughput" in said
    assert [path.name for path in folders[2].iterdir()] == ["clients"]


def test_python_compiles_a_package_on_one_node_and_runs_it_on_another(folders: list[Path]) -> None:
    package = folders[0] / "package"
    package.mkdir()
    (package / "__init__.py").write_text("ANSWER = 41\n")
    run(folders[0], sys.executable, "-m", "compileall", "-q", "package")
    (folders[1] / "package" / "__init__.py").write_text("ANSWER = 42  # longer\n")
    for folder in folders:
        said = run(folder, sys.executable, "-c", "import package; print(package.ANSWER)")
        assert said == "42\n"
