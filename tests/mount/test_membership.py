"""Nodes come and go by the commands, with real daemons, while programs work on the mounts."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import Cluster, Node, free_ports

LEASE_S = 3.0


def run(*words: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "clusterfs.cli.main", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def wait(so: Callable[[], object], timeout_s: float = 120.0) -> None:
    slept_s = 0.0
    while not so():
        assert slept_s < timeout_s, "it does not come to be so"
        time.sleep(0.1)
        slept_s += 0.1


class Founded:
    """A cluster that is made by the commands for real hosts, all in one folder."""

    def __init__(self, cluster: Cluster, *, tls: bool, replicas: int = 3) -> None:
        self.cluster = cluster
        self.etc = cluster.folder / "etc"
        (cluster.folder / "run").mkdir()
        (cluster.folder / "log").mkdir()
        self._tls = "--tls" if tls else "--no-tls"
        provider = f"local:{cluster.folder / 'cluster.db'}"
        words = ("--provider", provider, "--replicas", replicas, "--lease", LEASE_S)
        run("cluster", "init", "n1", *self.place("n1"), *words)

    def place(self, name: str) -> tuple[object, ...]:
        (port,) = free_ports(1, set())
        brick = self.cluster.folder / "bricks" / name
        return ("--brick", brick, "--listen", f"127.0.0.1:{port}", "--dir", self.etc, self._tls)

    def token(self, name: str, *, code: int = 0) -> str:
        said = run("cluster", "token", name, "--config", self.etc / "n1.toml", code=code)
        return said.strip()

    def join(self, name: str, *words: object) -> Node:
        run("cluster", "join", self.token(name), *self.place(name), *words)
        return self.cluster.node(name)

    def serve(self, name: str) -> Node:
        node = self.cluster.node(name)
        run("serve", node.config, "--log", node.log, "--pidfile", node.pidfile)
        return node

    def listed(self) -> dict[str, dict[str, Any]]:
        reply = json.loads(run("cluster", "list", self.etc / "n1.toml", "--json"))
        return {node["name"]: node for node in reply["nodes"]}


@pytest.fixture(scope="module")
def founded(make_cluster: Callable[..., Cluster]) -> Founded:
    """n1 founds the cluster inside TLS; n2 mounts without a brick, n3 has only a brick."""
    founded = Founded(make_cluster(nodes=0), tls=True)
    founded.cluster.start("n1")
    founded.join("n2", "--no-storage")
    founded.cluster.start("n2")
    founded.join("n3")
    founded.serve("n3")
    return founded


def test_a_client_and_a_storage_node_are_full_members(founded: Founded) -> None:
    n1, n2, n3 = founded.cluster.nodes
    (n2.mount / "by-a-client").write_bytes(b"x" * 100_000)
    assert (n1.mount / "by-a-client").read_bytes() == b"x" * 100_000
    assert not n3.mount.exists()
    assert not [path.name for path in n2.brick.iterdir() if path.name != "control.sock"]
    listed = founded.listed()
    assert {name: node["storage"] for name, node in listed.items()} == {
        "n1": True,
        "n2": False,
        "n3": True,
    }
    assert listed["n2"]["in_sync"] == listed["n2"]["wanted"] == 0
    shown = run("cluster", "list", founded.etc / "n1.toml")
    assert "no storage" in shown
    assert n2.ask("status")["space"] is None
    said = run("df", n2.mount, code=1)
    assert "no storage" in said


def test_the_storage_node_alone_serves_what_it_got(founded: Founded) -> None:
    n1, n2, n3 = founded.cluster.nodes
    path: Path = n2.mount / "kept"
    path.write_bytes(b"y" * 300_000)
    wait(lambda: n3.ask("status")["synced"])
    founded.cluster.kill("n1")
    assert path.read_bytes() == b"y" * 300_000
    (n2.mount / "more").write_bytes(b"z")
    founded.cluster.start("n1")
    assert (n1.mount / "more").read_bytes() == b"z"


def test_a_daemon_without_brick_and_mount_is_refused(founded: Founded) -> None:
    said = run("serve", founded.cluster.node("n2").config, code=1)
    assert "nothing to serve" in said


def test_an_uninvited_name_and_a_used_token_are_refused(founded: Founded) -> None:
    assert "already" in founded.token("n2", code=1)
    token = founded.token("n9")
    run("cluster", "join", token, *founded.place("n9"))
    (founded.etc / "n9.toml").unlink()
    for kind in ("pem", "key"):
        (founded.etc / "tls" / f"n9.{kind}").unlink()
    said = run("cluster", "join", token, *founded.place("n9"), code=1)
    assert "used already" in said
