"""Nodes come and go by the commands, with real daemons, while programs work on the mounts."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clusterfs.cli.dev import Cluster, Node, free_ports

LEASE_S = 10.0  # the machine may be busy
HEAVY = 4  # the weight of n5; all others' is 1


def run(*words: object, code: int = 0) -> str:
    command = [sys.executable, "-m", "clusterfs.cli.main", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def wait(so: Callable[[], object], timeout_s: float = 200.0) -> None:
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
        self._prepare("n1")

    def place(self, name: str) -> tuple[object, ...]:
        (port,) = free_ports(1, set())
        brick = self.cluster.folder / "bricks" / name
        return ("--brick", brick, "--listen", f"127.0.0.1:{port}", "--dir", self.etc, self._tls)

    def token(self, name: str, *, code: int = 0) -> str:
        said = run("cluster", "token", name, "--config", self.etc / "n1.toml", code=code)
        return said.strip()

    def join(self, name: str, *words: object) -> Node:
        run("cluster", "join", self.token(name), *self.place(name), *words)
        return self._prepare(name)

    def _prepare(self, name: str) -> Node:
        """Let a node that was killed stay so, and delete soon what is of no use."""
        node = self.cluster.node(name)
        weight = HEAVY if name == "n5" else 1
        settings = f'after_crash = "unmount"\ntrim_after_s = 1.0\nweight = {weight}\n'
        node.config.write_text(settings + node.config.read_text())
        return node

    def serve(self, name: str) -> Node:
        node = self.cluster.node(name)
        run("serve", node.config, "--log", node.log, "--pidfile", node.pidfile)
        return node

    def listed(self) -> dict[str, dict[str, Any]]:
        """Return what `cluster list` shows; starting the command would take most of the time."""
        reply = self.cluster.node("n1").ask("members", timeout_s=120.0)
        return {node["name"]: node for node in reply["nodes"]}


class Writer:
    """Appends numbered lines, each fsynced, and rewrites a file in place, until told to stop."""

    def __init__(self, folder: Path) -> None:
        self.done = 0
        self.failure: OSError | None = None
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with (
                (self._folder / "log").open("ab", buffering=0) as log,
                (self._folder / "image").open("w+b", buffering=0) as image,
            ):
                while not self._stop.is_set():
                    log.write(b"%d\n" % self.done)
                    os.fsync(log)
                    os.pwrite(image.fileno(), page(self.done), self.done % PAGES * len(page(0)))
                    self.done += 1
        except OSError as failure:
            self.failure = failure

    def more(self, lines: int = 5) -> None:
        """Wait until it has made progress."""
        wanted = self.done + lines
        wait(lambda: self.failure or self.done >= wanted)
        assert self.failure is None

    def stop(self) -> None:
        """Stop it; nothing may have failed."""
        self._stop.set()
        self._thread.join()
        assert self.failure is None

    def check(self, folder: Path) -> None:
        """Read what it wrote, on whichever node."""
        assert (folder / "log").read_bytes() == b"".join(b"%d\n" % n for n in range(self.done))
        image = (folder / "image").read_bytes()
        for n in range(max(0, self.done - PAGES), self.done):
            at = n % PAGES * len(page(0))
            assert image[at : at + len(page(0))] == page(n), n


PAGES = 64


def page(number: int) -> bytes:
    return b"%08d" % number * 1024


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
    reply = json.loads(run("cluster", "list", founded.etc / "n1.toml", "--json"))
    assert {node["name"]: node for node in reply["nodes"]}.keys() == listed.keys()
    shown = run("cluster", "list", founded.etc / "n1.toml")
    assert "no storage" in shown
    assert n2.ask("status")["space"] is None
    said = run("df", n2.mount, code=1)
    assert "no storage" in said


def test_the_storage_node_alone_serves_what_it_got(founded: Founded) -> None:
    n1, n2, _ = founded.cluster.nodes
    path: Path = n2.mount / "kept"
    path.write_bytes(b"y" * 300_000)
    wait(lambda: synced(founded))
    founded.cluster.kill("n1")
    assert path.read_bytes() == b"y" * 300_000
    (n2.mount / "more").write_bytes(b"z")
    founded.cluster.start("n1")
    assert (n1.mount / "more").read_bytes() == b"z"


def test_a_node_that_was_away_copies_what_changed_and_little_more(founded: Founded) -> None:
    n1, _, n3 = founded.cluster.nodes
    path = n1.mount / "image"
    content = bytearray(random.Random(7).randbytes(16 << 20))
    with path.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    wait(lambda: synced(founded))
    founded.cluster.kill("n3")
    with path.open("r+b", buffering=0) as file:
        for n in range(64):
            at = n * (256 << 10)
            content[at : at + 4096] = page(n)[:4096]
            os.pwrite(file.fileno(), content[at : at + 4096], at)
        os.fsync(file.fileno())
    founded.serve("n3")
    wait(lambda: n3.ask("status")["synced"])
    resync = n3.ask("status")["resync"]["resync"]
    assert 0 < resync["pulled_bytes"] <= 2 * 64 * 4096
    assert (resync["part"], resync["eta_s"]) == (1.0, 0.0)
    said = json.loads(run("scrub", n3.config, "--replicas", "--wait", "--json"))
    assert said["compared"] > 1
    assert said["diverged"] == said["unstable"] == 0
    wait(lambda: synced(founded))
    founded.cluster.kill("n1")
    assert (founded.cluster.node("n2").mount / "image").read_bytes() == content
    founded.cluster.start("n1")


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


def test_a_removed_nodes_certificate_counts_no_more_and_a_new_tokens_does(
    founded: Founded,
) -> None:
    n1, n2, n3 = founded.cluster.nodes[:3]
    subprocess.run(["umount", n2.mount], check=True, timeout=200)
    wait(lambda: n2.state() == "gone")
    wait(lambda: founded.listed()["n2"]["state"] == "away")
    assert "forgotten" in run("cluster", "remove", "n2", n1.config)
    papers = [founded.etc / "tls" / f"n2.{kind}" for kind in ("pem", "key")]
    old = [path.rename(path.with_suffix(path.suffix + ".old")) for path in papers]
    n2.config.unlink()
    founded.join("n2", "--no-storage")
    new = [path.rename(path.with_suffix(path.suffix + ".new")) for path in papers]
    for path, kept in zip(papers, old, strict=True):
        path.write_bytes(kept.read_bytes())
        path.chmod(0o600)
    program = [sys.executable, "-m", "clusterfs.cli.mount", "-f", n2.config, n2.mount]
    in_vain = subprocess.Popen(program, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        refusal = "the certificate of n2 was revoked when n2 was removed"
        wait(lambda: refusal in n1.log.read_text() or refusal in n3.log.read_text())
    finally:
        os.killpg(in_vain.pid, signal.SIGKILL)
        in_vain.wait()
    for path, kept in zip(papers, new, strict=True):
        kept.rename(path)
    founded.cluster.start("n2")
    (n2.mount / "back").write_bytes(b"again")
    assert (n1.mount / "back").read_bytes() == b"again"


@pytest.fixture(scope="module")
def growing(make_cluster: Callable[..., Cluster]) -> Founded:
    """n1 alone; two copies are wanted."""
    founded = Founded(make_cluster(nodes=0), tls=False, replicas=2)
    founded.cluster.start("n1")
    return founded


def synced(founded: Founded) -> bool:
    """Tell whether every group has as many copies as wanted and nothing moves."""
    nodes = founded.listed().values()
    return all(
        n["state"] == "up" and n["in_sync"] == n["wanted"] and not n["syncing"] for n in nodes
    )


@pytest.mark.timeout(1500)
def test_a_cluster_grows_and_shrinks_under_a_writer(growing: Founded) -> None:
    cluster = growing.cluster
    folder = cluster.node("n1").mount / "busy"
    folder.mkdir()
    for number in range(20):
        (folder / f"d{number}").mkdir()
        (folder / f"d{number}" / "file").write_bytes(page(number) * 10)
    writer = Writer(folder)
    try:
        for name in ("n2", "n3", "n4", "n5"):
            growing.join(name)
            cluster.start(name)
            writer.more()
        wait(lambda: synced(growing))
        listed = growing.listed()
        assert sum(node["in_sync"] for node in listed.values()) == 2 * 256
        assert all(0 < node["in_sync"] < 256 for node in listed.values())
        lighter = [node["in_sync"] for name, node in listed.items() if name != "n5"]
        assert listed["n5"]["in_sync"] > 1.5 * max(lighter), "its weight is that of all others"
        wait(lambda: cluster.node("n1").ask("status")["resync"]["trimmed"] > 0)
        for name in ("n2", "n4"):
            leave(growing, name)
            writer.more()
        wait(lambda: synced(growing))
        assert sorted(growing.listed()) == ["n1", "n3", "n5"]
        cluster.kill("n3")  # one of two copies of some of it, and there is a third node
        writer.more()
        run("cluster", "remove", "n3", growing.etc / "n1.toml", "--dead")
        wait(lambda: synced(growing))
        assert sorted(growing.listed()) == ["n1", "n5"]
    finally:
        writer.stop()
    (growing.etc / "n3.toml").unlink()
    there = cluster.node("n5").mount / "busy"
    writer.check(there)
    for number in range(20):
        assert (there / f"d{number}" / "file").read_bytes() == page(number) * 10
    wait(lambda: synced(growing))
    cluster.kill("n1")
    writer.check(there)
    cluster.start("n1")


def leave(growing: Founded, name: str, *how: str) -> None:
    """Remove a node as its administrator does: empty it, unmount it, and it is forgotten."""
    words = ("cluster", "remove", name, growing.etc / "n1.toml", *how)
    run(*words, "--no-wait")
    wait(lambda: growing.listed()[name]["held"] == 0)
    assert "holds nothing any more" in run(*words, "--no-wait")
    node = growing.cluster.node(name)
    subprocess.run(["umount", node.mount], check=True, timeout=200)
    wait(lambda: node.state() == "gone")
    wait(lambda: growing.listed()[name]["state"] == "away")
    assert "forgotten" in run(*words)
    gone = node.config.rename(node.config.with_suffix(".gone"))
    refused = run("serve", gone, "-f", code=1)
    assert f"node {name} was removed from the cluster" in refused


def test_what_would_lose_data_is_refused(growing: Founded) -> None:
    config = growing.etc / "n1.toml"
    assert "1 node for 2 copies" in run("cluster", "remove", "n5", config, code=1)
    assert "no node is called 'n9'" in run("cluster", "remove", "n9", config, code=1)
    assert growing.listed()["n5"]["retiring"] is False


@pytest.mark.timeout(1200)
def test_one_node_is_left_if_that_is_meant(growing: Founded) -> None:
    n1 = growing.cluster.node("n1")
    files = [path for path in (n1.mount / "busy").glob("*") if path.is_file()]
    before = {path.name: path.read_bytes() for path in files}
    assert before
    leave(growing, "n5", "--fewer-copies")
    assert sorted(growing.listed()) == ["n1"]
    for name, content in before.items():
        assert (n1.mount / "busy" / name).read_bytes() == content
    (n1.mount / "alone").write_bytes(b"it goes on")


@pytest.mark.timeout(1200)
def test_an_operator_goes_on_without_a_node_that_is_lost(
    make_cluster: Callable[..., Cluster],
) -> None:
    founded = Founded(make_cluster(nodes=0), tls=False, replicas=2)
    cluster, config = founded.cluster, founded.etc / "n1.toml"
    cluster.start("n1")
    founded.join("n2")
    cluster.start("n2")
    path = cluster.node("n1").mount / "kept"
    with path.open("wb", buffering=0) as file:
        file.write(b"both have it")
        os.fsync(file.fileno())
    cluster.kill("n1")
    cluster.kill("n2")  # whatever was written last is here
    starting = threading.Thread(target=cluster.start, args=("n1",))
    starting.start()
    wait(lambda: awaited(config))
    assert "groups wait for n2" in run("cluster", "remove", "n2", config, "--dead", code=1)
    said = run("cluster", "force", config, "--yes", "--truth", "n1")
    assert "groups wait for n2" in said
    starting.join()
    assert path.read_bytes() == b"both have it"
    assert "nothing to do" in run("cluster", "force", config, "--yes")
    run("cluster", "remove", "n2", config, "--dead")
    assert sorted(founded.listed()) == ["n1"]
    path.write_bytes(b"and it goes on")


def awaited(config: Path) -> bool:
    """Tell whether the node of that config runs, and waits for others."""
    done = subprocess.run(
        [sys.executable, "-m", "clusterfs.cli.main", "cluster", "list", str(config), "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode == 0 and json.loads(done.stdout)["stopped_groups"] > 0
