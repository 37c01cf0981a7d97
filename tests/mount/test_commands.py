"""The commands as people and programs use them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clusterfs.cli import processes
from clusterfs.cli.dev import Cluster

COMMANDS = Path(sys.executable).parent
PATIENCE_S = 150.0


def run(command: str, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(COMMANDS / command), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == code, done
    return done


def test_status_says_the_same_for_a_mount_a_config_and_a_socket(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    for target in (node.mount, node.config, node.brick / "control.sock"):
        reply = json.loads(run("clusterfs", "status", target, "--json").stdout)
        assert reply["name"] == "n1"
        assert reply["synced"] is True
        assert reply["lease_left_s"] > 0
        assert {member["name"] for member in reply["members"]} == {"n1", "n2", "n3"}
        assert all(member["in_sync"] == reply["groups"] for member in reply["members"])
    shown = run("clusterfs", "status", node.mount).stdout
    assert "n1" in shown
    assert "members" in shown


def test_status_of_nothing_is_one_line(tmp_path: Path) -> None:
    done = run("clusterfs", "status", tmp_path, code=1)
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path) in done.stderr


def test_lockdump_shows_who_holds_a_file(folders: list[Path], cluster: Cluster) -> None:
    path = folders[0] / "f"
    path.write_text("x")
    inode = path.stat().st_ino
    dumps = [
        json.loads(run("clusterfs-lockdump", node.mount, "--json").stdout) for node in cluster.nodes
    ]
    assert sorted(dump["node"] for dump in dumps) == [1, 2, 3]
    mastered = [resource for dump in dumps for resource in dump["resources"]]
    assert any(f"{inode:x}" in resource["name"] for resource in mastered)
    assert any(f"{inode:x}" in lock["name"] for lock in dumps[0]["locks"])
    assert "Resource" in run("clusterfs-lockdump", cluster.nodes[0].mount).stdout


def test_the_verbs_of_a_development_cluster(tmp_path: Path) -> None:
    folder = ["--dir", tmp_path / "c"]
    try:
        run("clusterfs", "dev", "status", *folder, code=1)
        run("clusterfs", "dev", "up", "--nodes", 2, "--replicas", 2, *folder)
        (tmp_path / "c" / "n1" / "f").write_text("content")
        run("clusterfs", "dev", "pause", "n2", *folder)
        reply = json.loads(run("clusterfs", "dev", "status", "--json", *folder).stdout)
        assert [node["state"] for node in reply["nodes"]] == ["running", "paused"]
        run("clusterfs", "dev", "resume", "n2", *folder)
        assert (tmp_path / "c" / "n2" / "f").read_text() == "content"
        run("clusterfs", "dev", "kill", "n2", *folder)
        assert "n2 does not run" in run("clusterfs", "dev", "kill", "n2", *folder, code=1).stderr
        run("clusterfs", "dev", "start", "n2", *folder)
        assert (tmp_path / "c" / "n2" / "f").read_text() == "content"
        assert "gone" not in run("clusterfs", "dev", "status", *folder).stdout
        run("clusterfs", "dev", "up", "--nodes", 2, *folder)  # all run: nothing to do
        assert "n9" in run("clusterfs", "dev", "kill", "n9", *folder, code=1).stderr
    finally:
        run("clusterfs", "dev", "down", *folder)
    reply = json.loads(run("clusterfs", "dev", "status", "--json", *folder).stdout)
    assert [node["state"] for node in reply["nodes"]] == ["gone", "gone"]
    run("clusterfs", "dev", "up", *folder)
    assert (tmp_path / "c" / "n2" / "f").read_text() == "content"
    run("clusterfs", "dev", "down", *folder)


def test_verbs_wait_for_the_verb_that_is_at_work(tmp_path: Path) -> None:
    folder = ["--dir", str(tmp_path / "c")]
    run("clusterfs", "dev", "up", "--nodes", 1, "--replicas", 1, *folder)
    try:
        command = [str(COMMANDS / "clusterfs"), "dev"]
        ups = [subprocess.Popen([*command, "up", *folder], stdout=-3) for _ in range(2)]
        run("clusterfs", "dev", "kill", "n1", *folder)
        run("clusterfs", "dev", "up", *folder)
        assert [up.wait(400) for up in ups] == [0, 0]
    finally:
        run("clusterfs", "dev", "down", *folder)


def test_what_a_dead_daemon_left_is_cleared_by_the_next_mount(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c")
    cluster.up(1, 1)
    node = cluster.nodes[0]
    try:
        (node.mount / "f").write_text("x")
        assert node.supervisor is not None
        cluster.pause("n1")  # neither may tidy up after the other
        processes.send(node.supervisor, signal.SIGKILL)
        cluster.kill("n1")
        assert processes.wait_gone(node.supervisor, PATIENCE_S)
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            node.mount.stat()
        run("mount.clusterfs", node.config, node.mount, "-o", f"pidfile={node.pidfile}")
        assert node.mount.is_mount()
    finally:
        cluster.down()


def test_a_mount_that_must_wait_says_for_whom_and_ends_with_its_command(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c")
    cluster.up(2, 2)
    with cluster.node("n1").mount.joinpath("f").open("w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
    for name in ("n1", "n2"):
        cluster.kill(name)
    cluster.down()
    node = cluster.nodes[0]
    command = [str(COMMANDS / "mount.clusterfs"), str(node.config), str(node.mount)]
    command += ["-o", f"pidfile={node.pidfile}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith("mount.clusterfs: waiting for n2: ")
        waiting.terminate()
        assert waiting.wait(PATIENCE_S) == 128 + signal.SIGTERM
    process = node.process
    assert process is not None
    assert processes.wait_gone(process, PATIENCE_S)
    cluster.up()
    try:
        assert (node.mount / "f").read_text() == "x"
    finally:
        cluster.down()


def test_umount_flushes_and_ends_the_daemon(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c")
    cluster.up(1, 1)
    node = cluster.nodes[0]
    try:
        (node.mount / "f").write_bytes(b"x" * 1_000_000)
        subprocess.run(["umount", str(node.mount)], check=True)
        cluster.down()
        assert node.state() == "gone"
        cluster.up()
        assert (node.mount / "f").read_bytes() == b"x" * 1_000_000
    finally:
        cluster.down()


def test_the_mount_helper_in_the_foreground(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c")
    cluster.up(1, 1)
    cluster.down()
    node = cluster.nodes[0]
    command = ["prlimit", "--nofile=100:3000"]
    command += [str(COMMANDS / "mount.clusterfs"), str(node.config), str(node.mount), "-f"]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not os.path.ismount(node.mount):
            assert daemon.poll() is None
        (node.mount / "f").write_text("x")
        kinds = Path("/proc/self/mountinfo").read_text()
        assert f"{node.mount} rw" in kinds
        assert " - fuse.clusterfs " in kinds
        limits = Path(f"/proc/{node.ask('status')['pid']}/limits").read_text()
        assert re.search(r"Max open files +3000 +3000 ", limits), limits
    finally:
        subprocess.run(["umount", str(node.mount)], check=False)
        assert daemon.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("command", ["clusterfs", "mount.clusterfs", "clusterfs-lockdump"])
def test_every_command_explains_itself(command: str) -> None:
    assert "Usage" in run(command, "--help").stdout
