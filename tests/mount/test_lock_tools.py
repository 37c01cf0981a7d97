"""The real tools of fs/dlm and OCFS2 read what clusterfs-lockdump writes for them."""

import json
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from clusterfs.cli.lockdump import Format, View, load, render

RECORDS = Path(__file__).parents[1] / "unit" / "clusterfs" / "cli" / "locks" / "recorded"
RECORDED = RECORDS / "three-lockspaces.json"
OF_MOUNTS = RECORDS / "mounts.json"  # of three mounts; one was stopped

# dlm_tool looks nowhere else than in debugfs, which is not ours: a mount namespace has its own.
IN_DEBUGFS = """
mount -t tmpfs none /sys/kernel/debug 2>/dev/null || {
    mount -t tmpfs none /sys/kernel && mkdir /sys/kernel/debug; }
mkdir /sys/kernel/debug/dlm && cd /sys/kernel/debug/dlm
cp "$1" volume_locks && cp "$2" volume_all && touch volume_toss volume_waiters
shift 2; exec dlm_tool "$@" volume
"""


def written(folder: Path, form: str, node: int, recorded: Path = RECORDED) -> Path:
    path = folder / f"{form}-{node}"
    with path.open("w") as file:
        render(load(recorded), View(Format(form), node=node), Console(file=file))
    return path


def dlm_tool(folder: Path, node: int, *arguments: str, recorded: Path = RECORDED) -> list[str]:
    forms = ("lockdump", "lockdebug")
    locks, everything = (written(folder, form, node, recorded) for form in forms)
    shell = ["unshare", "-m", "sh", "-c", IN_DEBUGFS, "sh", locks, everything]
    done = subprocess.run([*shell, *arguments], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filesystem of OCFS2, which debugfs.ocfs2 opens before it reads a file of locks."""
    path = tmp_path_factory.mktemp("ocfs2") / "image"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ocfs2", "-q", "-M", "local", "-F", path], check=True, input=b"")
    return path


def debugfs_ocfs2(image: Path, request: str) -> list[str]:
    command = ["debugfs.ocfs2", "-n", "-R", request, image]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_dlm_tool_reads_our_lockdump(tmp_path: Path) -> None:
    assert dlm_tool(tmp_path, 1, "lockdump", "-M") == [
        'id 01000001 gr EX rq IV pid 41 master 0 "000000000000002a"',
        'id 02000002 gr IV rq PR pid 42 MSTCPY 2 "000000000000002a"',
        'id 03000002 gr IV rq CR pid 43 MSTCPY 3 "000000000000002a"',
        'id 02000001 gr PR rq IV pid 0 MSTCPY 2 "000000000000002a/o"',
        'id 03000001 gr PR rq EX pid 43 MSTCPY 3 "000000000000002a/o"',
    ]
    assert dlm_tool(tmp_path, 2, "lockdump", "-M") == [
        'id 02000001 gr PR rq IV pid 0 master 1 "000000000000002a/o"',
        'id 02000002 gr IV rq PR pid 42 master 1 "000000000000002a"',
    ]


def test_dlm_tool_reads_our_lockdebug(tmp_path: Path) -> None:
    assert [line.rstrip() for line in dlm_tool(tmp_path, 1, "lockdebug")] == [
        "",
        'Resource len 16  "000000000000002a"',
        "Master",
        "LVB len 8 seq 1",
        "78 78 78 78 78 78 78 78",
        "Granted",
        "01000001 EX",
        "Waiting",
        "02000002 -- (PR) Remote:   2 02000002",
        "03000002 -- (CR) Remote:   3 03000002",
        "",
        'Resource len 18  "000000000000002a/o"',
        "Master",
        "Granted",
        "02000001 PR      Remote:   2 02000001",
        "Convert",
        "03000001 PR (EX) Remote:   3 03000001",
        "",
    ]


def test_dlm_tool_counts_what_we_count(tmp_path: Path) -> None:
    summary = dict(
        line.rsplit(maxsplit=1)
        for line in dlm_tool(tmp_path, 3, "lockdebug", "-s")
        if line.startswith("  ")
    )
    counts = {name.strip(): int(count) for name, count in summary.items()}
    assert (counts["active"], counts["remote master"], counts["total"]) == (2, 2, 2)
    assert (counts["waiting"], counts["convert"], counts["process copy"]) == (1, 1, 2)


def test_debugfs_ocfs2_reads_our_fs_locks(tmp_path: Path, image: Path) -> None:
    path = written(tmp_path, "fs_locks", 3)
    shown = debugfs_ocfs2(image, f"fs_locks -f {path}")
    assert shown[:5] == [
        "Lockres: O000000000000000000002a00000000  Mode: Protected Read",
        "Flags: Initialized Attached Busy",
        "RO Holders: 0  EX Holders: 0",
        "Pending Action: Convert  Pending Unlock Action: None",
        "Requested Mode: Exclusive  Blocking Mode: Invalid",
    ]
    assert "Lockres: M000000000000000000002a00000000  Mode: Invalid" in shown
    busy = debugfs_ocfs2(image, f"fs_locks -f {written(tmp_path, 'fs_locks', 1)} -B")
    assert busy == []


def test_debugfs_ocfs2_reads_our_dlm_locks(tmp_path: Path, image: Path) -> None:
    path = written(tmp_path, "dlm_locks", 1)
    shown = debugfs_ocfs2(image, f"dlm_locks -f {path} -l")
    assert shown[0] == "Lockres: M000000000000000000002a00000000   Owner: 1    State: 0x0 "
    assert "Reference Map: 1 2 3 " in shown
    assert shown[4].split() == ["Raw", "LVB:", *["78"] * 8, *["00"] * 8]
    locks = [line.split()[:5] for line in shown if line.startswith((" Gr", " Conv", " Bl"))]
    assert locks == [
        ["Granted", "1", "EX", "-1", "1:1"],
        ["Blocked", "2", "PR", "-1", "2:2"],
        ["Blocked", "3", "1", "-1", "3:2"],
        ["Granted", "2", "PR", "-1", "2:1"],
        ["Converting", "3", "PR", "EX", "3:1"],
    ]


@pytest.mark.parametrize("node", [1, 2])
def test_every_tool_reads_every_lock_of_real_mounts(tmp_path: Path, image: Path, node: int) -> None:
    nodes = json.loads(OF_MOUNTS.read_text())["nodes"]
    [own] = [value for value in nodes if value["node"] == node]
    queues = [len(r[q]) for r in own["resources"] for q in ("granted", "converting", "waiting")]
    elsewhere = [lock for lock in own["locks"] if lock["master"] != node]

    locks = dlm_tool(tmp_path, node, "lockdump", "-M", recorded=OF_MOUNTS)
    assert len(locks) == sum(queues) + len(elsewhere)
    summary = dlm_tool(tmp_path, node, "lockdebug", "-s", recorded=OF_MOUNTS)
    [total] = [line.split()[1] for line in summary if line.split()[:1] == ["total"]]
    assert int(total) == len(locks)

    path = written(tmp_path, "fs_locks", node, OF_MOUNTS)
    shown = debugfs_ocfs2(image, f"fs_locks -f {path}")
    assert sum(line.startswith("Lockres:") for line in shown) == len(own["locks"])
    path = written(tmp_path, "dlm_locks", node, OF_MOUNTS)
    shown = debugfs_ocfs2(image, f"dlm_locks -f {path}")
    assert sum(line.startswith("Lockres:") for line in shown) == len(own["resources"])
