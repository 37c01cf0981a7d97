"""What an administrator asks a running node for."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import Cluster, Node, free_ports
from clusterfs.metrics import METRICS

PATIENCE_S = 120


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1, set())[0]


@pytest.fixture(scope="module")
def node(make_cluster: Callable[..., Cluster], port: int) -> Node:
    settings = {"metrics": f'"127.0.0.1:{port}"', "admin_group": '"daemon"'}
    return make_cluster(1, 1, settings=settings).nodes[0]


def run(*arguments: str, **options: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "clusterfs.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_healthy_node_has_no_codes_and_every_metric(node: Node, port: int) -> None:
    assert json.loads(run("status", str(node.mount), "--json"))["codes"] == []
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    missing = [row.name for row in METRICS if f"\n{row.name} " not in text]
    assert missing == []


def test_top_counts_what_happens(node: Node) -> None:
    lines = run("top", str(node.mount), "--count", "2", "--interval", "0.2", "--json").splitlines()
    pictures = [json.loads(line) for line in lines]
    assert [picture["name"] for picture in pictures] == ["n1", "n1"]
    assert run("top", str(node.mount), "--count", "1", "--interval", "0.2")


def test_a_debug_bundle_has_what_helps(node: Node, tmp_path: Path) -> None:
    out = tmp_path / "bundle.tar.gz"
    run("debug", "bundle", str(node.mount), "--out", str(out))
    assert out.stat().st_mode & 0o777 == 0o600
    with tarfile.open(out) as archive:
        parts = {member.name.partition("/")[2]: member for member in archive.getmembers()}
        status = archive.extractfile(parts["status.json"])
        assert status is not None
        assert json.loads(status.read())["name"] == "n1"
        log = archive.extractfile(parts["log"])
        assert log is not None
        assert b'"joined"' in log.read()
    assert {"statistics.json", "locks.json", "df.json", "members.json", "config.toml"} <= set(parts)


def test_a_hangup_ends_no_daemon_in_the_background(node: Node) -> None:
    pids = [process.pid for process in (node.process, node.supervisor) if process]
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGHUP)
    assert (node.mount / ".").stat().st_ino
    assert node.state() == "running"
    assert node.ask("status")["takeovers"] == 0
    ignored = [line for pid in pids for line in status_of(pid) if line.startswith("SigIgn")]
    assert all(int(line.split()[1], 16) & 1 << signal.SIGHUP - 1 for line in ignored)


def status_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()


ASK = """
import os, socket, sys
os.setgroups([int(group) for group in sys.argv[2:]])
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as line:
    line.settimeout(120)
    line.connect(sys.argv[1])
    line.sendall(b'{"request": "ping"}\\n')
    print(line.recv(100).decode())
"""


def test_the_admin_socket_is_roots_and_its_groups(node: Node) -> None:
    socket = node.brick / "control.sock"
    for folder in (node.brick, node.brick.parent, node.brick.parent.parent):
        folder.chmod(0o755)
    daemon_group = 1
    assert (socket.stat().st_mode & 0o777, socket.stat().st_gid) == (0o660, daemon_group)

    def asked(*groups: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(socket), *map(str, groups)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.stdout if done.returncode == 0 else done.stderr

    assert '"ok":true' in asked(daemon_group)
    assert "PermissionError" in asked()
    os.chmod(socket, 0o666)  # noqa: S103  should somebody open it
    refused = asked()
    assert '"ok"' not in refused
    assert "admin request refused" in node.log.read_text()
    os.chmod(socket, 0o660)
