"""A whole cluster on one machine, for development, tests and demonstrations.

Everything is under one folder: bricks/nK, etc/nK.toml, cluster.db, log/nK.log,
run/nK.pid, and the mounts n1 ... nN. The files are the truth; nothing else is remembered, so any
command works after any crash.

Invariants:
  * a verb returns only when what it says is so, and raises SetupError otherwise;
  * only processes recorded in run/ are signalled, and only if they are still the ones recorded.
"""

import contextlib
import ctypes
import datetime as dt
import fcntl
import functools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from clusterfs import certificates, config, control
from clusterfs.cli import processes
from clusterfs.cli.control import mount_at
from clusterfs.errors import NotAnswering, SetupError

# A disk that others keep busy may take seconds for each sync, and there are a dozen on the way.
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 180.0
OTHERS_TIMEOUT_S = 900.0  # longer than any verb takes, so that verbs queue
BUSY_TIMEOUT_S = 30.0  # for programs to leave a mount
PATIENCE_S = 10.0  # then what is waited for is said
MOST_NODES = 62

MOUNT_PROGRAM = (sys.executable, "-P", "-m", "clusterfs.cli.mount")
_LOCAL = "local:../cluster.db"
_TLS = """
[tls]
ca = "../tls/ca.pem"
certificate = "../tls/{name}.pem"
key = "../tls/{name}.key"
"""
_MNT_DETACH = 2
_POLL_S = 0.05
_FIRST_PORT, _LAST_PORT = 20000, 30000  # below what the kernel gives to outgoing connections


class Node(msgspec.Struct, frozen=True):
    """Where one node of the cluster keeps its things."""

    number: int
    folder: Path

    @property
    def name(self) -> str:
        """Return nK."""
        return f"n{self.number}"

    @property
    def mount(self) -> Path:
        """Return the mount point."""
        return self.folder / self.name

    @property
    def brick(self) -> Path:
        """Return where its store is."""
        return self.folder / "bricks" / self.name

    @property
    def config(self) -> Path:
        """Return its configuration file."""
        return self.folder / "etc" / f"{self.name}.toml"

    @property
    def log(self) -> Path:
        """Return its log file."""
        return self.folder / "log" / f"{self.name}.log"

    @property
    def pidfile(self) -> Path:
        """Return where its process is recorded."""
        return self.folder / "run" / f"{self.name}.pid"

    @property
    def process(self) -> processes.Process | None:
        """Return the recorded daemon, alive or not."""
        family = processes.recorded(self.pidfile)
        return family.daemon if family else None

    @property
    def supervisor(self) -> processes.Process | None:
        """Return the recorded parent of the daemon, alive or not."""
        family = processes.recorded(self.pidfile)
        return family.supervisor if family else None

    def state(self) -> str:
        """Return "running", "paused" or "gone"."""
        process = self.process
        return processes.state(process) if process else "gone"

    def ask(self, request: str, timeout_s: float = 30.0, **arguments: Any) -> dict[str, Any]:
        """Ask its daemon. Raises NotAnswering."""
        return control.ask(self.brick / "control.sock", request, timeout_s=timeout_s, **arguments)


class Cluster:
    """The nodes under one folder and what can be done with them."""

    def __init__(
        self,
        folder: Path,
        program: Callable[[Node], list[str]] | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """`program` says how a node's mount.clusterfs is run, on another host say.

        `say` is told what takes long, a line each, perhaps on other threads.
        """
        self.folder = folder.absolute()
        self._program = program or (lambda _node: list(MOUNT_PROGRAM))
        self._say = say

    @property
    def nodes(self) -> list[Node]:
        """Return every node that has a configuration, by number."""
        numbers = [int(path.stem[1:]) for path in self.folder.glob("etc/n[0-9]*.toml")]
        return [Node(number, self.folder) for number in sorted(numbers)]

    def node(self, name: str) -> Node:
        """Return the node called nK. Raises SetupError."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes) or "none"
        raise SetupError(f"{self.folder} has no node {name!r}; there are: {known}")

    def up(
        self,
        nodes: int | None = None,
        replicas: int | None = None,
        provider: str | None = None,
        *,
        tls: bool = False,
    ) -> None:
        """Start what does not run, mount it, and wait until every node is in sync."""
        with self._locked(create=True):
            self.configure(nodes, replicas, provider, tls=tls)
            self._start([node for node in self.nodes if not self._serving(node)])
            self._wait_synced(self.nodes)

    def start(self, name: str) -> None:
        """Start one node again and wait until it is in sync."""
        node = self.node(name)
        with self._locked():
            if node.state() == "paused":
                raise SetupError(f"{name} is paused; `clusterfs dev resume {name}` lets it go on")
            if not self._serving(node):
                self._start([node])
            self._wait_synced([node])

    def kill(self, name: str) -> None:
        """End one node's daemon with SIGKILL; returns when the process is gone."""
        node = self.node(name)
        with self._locked():
            process = node.process
            if process is None or not processes.send(process, signal.SIGKILL):
                raise SetupError(f"{name} does not run")
            if not self._ended(node, process):
                raise SetupError(f"{name}: process {process.pid} survives SIGKILL")

    def pause(self, name: str) -> None:
        """Stop one node's daemon with SIGSTOP; returns when it stands still."""
        node = self.node(name)
        with self._locked():
            process = node.process
            if process is None or not processes.send(process, signal.SIGSTOP):
                raise SetupError(f"{name} does not run")
            self._wait(f"{name} stands still", lambda: node.state() == "paused", STOP_TIMEOUT_S)

    def resume(self, name: str) -> None:
        """Let a paused node go on; returns when it is a member in sync."""
        node = self.node(name)
        with self._locked():
            process = node.process
            if process is None or not processes.send(process, signal.SIGCONT):
                raise SetupError(f"{name} does not run")
            self._wait(f"{name} goes on", lambda: node.state() == "running", STOP_TIMEOUT_S)
            self._wait_synced([node])

    def down(self) -> None:
        """Unmount every node and wait until its daemon has ended; the data stays."""
        with self._locked():
            for node in self.nodes:
                if node.state() == "paused" and (process := node.process):
                    processes.send(process, signal.SIGCONT)
            _in_parallel(self._stop, self.nodes)

    def status(self) -> dict[str, Any]:
        """Return what is so now; a node that does not answer has no `daemon`."""
        if not self.nodes:
            raise SetupError(f"{self.folder}: no cluster here; `clusterfs dev up` makes one")
        return {"folder": str(self.folder), "nodes": [_describe(node) for node in self.nodes]}

    @contextlib.contextmanager
    def _locked(self, *, create: bool = False) -> Iterator[None]:
        """Let one command at a time change this cluster; others wait for it."""
        run = self.folder / "run"
        if create:
            _make_folder(run)
        elif not run.is_dir():
            raise SetupError(f"{self.folder}: no cluster here; `clusterfs dev up` makes one")
        with (run / "lock").open("ab") as lock:
            self._wait(
                f"the other `clusterfs dev` at work on {self.folder} has ended",
                functools.partial(_taken, lock.fileno()),
                OTHERS_TIMEOUT_S,
            )
            yield

    def configure(
        self,
        nodes: int | None,
        replicas: int | None,
        provider: str | None = None,
        *,
        tls: bool = False,
    ) -> None:
        """Write what is missing: folders, and a configuration for each new node."""
        existing = {node.number for node in self.nodes}
        wanted = nodes or max(existing, default=3)
        assert 1 <= wanted <= MOST_NODES, wanted
        if existing and wanted < max(existing):
            raise SetupError(f"{self.folder} has {max(existing)} nodes already; none are removed")
        for name in ("bricks", "etc", "log"):
            _make_folder(self.folder / name)
        missing = sorted(set(range(1, wanted + 1)) - existing)
        for number, port in zip(missing, free_ports(len(missing), self._ports()), strict=True):
            node = Node(number, self.folder)
            if tls:
                self._certify(node)
            _write_config(node, port, replicas or 3, provider or _LOCAL, tls=tls)
        for node in self.nodes:
            _make_folder(node.brick)

    def _certify(self, node: Node) -> None:
        now = dt.datetime.now(dt.UTC)
        if not (self.folder / "tls" / "ca.key").exists():
            certificates.make_authority(self.folder / "tls", now)
        certificates.issue(self.folder / "tls", node.name, self.folder / "tls", now)

    def _ports(self) -> set[int]:
        return {int(config.load(node.config).listen.rpartition(":")[2]) for node in self.nodes}

    def _serving(self, node: Node) -> bool:
        """Tell whether the node runs, is mounted and answers."""
        if node.state() != "running" or mount_at(node.mount) is None:
            return False
        try:
            node.ask("ping", 2.0)
        except NotAnswering:
            return False
        return True

    def _start(self, nodes: Sequence[Node]) -> None:
        """Mount all at once: after a full stop they need one another."""
        try:
            _in_parallel(self._start_one, nodes)
        except SetupError:
            for node in nodes:
                with contextlib.suppress(SetupError):
                    self._stop(node)
            raise

    def _start_one(self, node: Node) -> None:
        process = node.process
        if process and processes.state(process) != "gone":
            raise SetupError(
                f"{node.name}: process {process.pid} runs but does not serve {node.mount}"
            )
        if node.supervisor and not self._ended(node, node.supervisor):
            raise SetupError(f"{node.name}: the supervisor of its last run does not end")
        _start(node, self._program(node))

    def _stop(self, node: Node) -> None:
        process = node.process
        if process is None or processes.state(process) == "gone":
            clear_mount(node.mount)
            return
        if mount_at(node.mount):
            _unmount(node)
        elif not self._ended(node, process):  # it may be busy with its last flush
            processes.send(process, signal.SIGTERM)
        for member in (process, node.supervisor):
            if member and not self._ended(node, member):
                raise SetupError(
                    f"{node.name}: process {member.pid} has not ended {STOP_TIMEOUT_S:g} s after "
                    f"umount ({processes.doing(member)}); see {node.log}"
                )

    def _wait(self, what: str, so: Callable[[], bool], timeout_s: float) -> None:
        started_s = time.monotonic()  # noqa: TID251  (a shell reads clocks)
        said = False
        while not so():
            waited_s = time.monotonic() - started_s  # noqa: TID251
            if waited_s > timeout_s:
                raise SetupError(f"it is not so after {timeout_s:g} s: {what}")
            if waited_s > PATIENCE_S and not said:
                self._say(f"waiting until {what}")
                said = True
            time.sleep(_POLL_S)

    def _ended(self, node: Node, process: processes.Process) -> bool:
        """Wait for the end of a process; False if it does not come."""
        if processes.wait_gone(process, PATIENCE_S):
            return True
        doing = processes.doing(process)
        self._say(f"{node.name}: waiting for the end of process {process.pid} ({doing})")
        return processes.wait_gone(process, STOP_TIMEOUT_S - PATIENCE_S)

    def _wait_synced(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self._wait(f"{node.name} is in sync", functools.partial(_synced, node), START_TIMEOUT_S)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(node: Node, program: list[str]) -> None:
    clear_mount(node.mount)
    _make_folder(node.mount)
    command = [*program, str(node.config), str(node.mount)]
    command += ["-o", f"log={node.log},pidfile={node.pidfile}"]
    done = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        _, said = done.communicate(timeout=START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        done.kill()
        done.communicate()
        raise SetupError(
            f"{node.name} does not answer within {START_TIMEOUT_S:g} s; see {node.log}"
        ) from None
    if done.returncode:
        line = said.strip().rpartition("\n")[2].removeprefix("mount.clusterfs: ")
        raise SetupError(f"{node.name}: {line or f'mount.clusterfs failed; see {node.log}'}")


def _unmount(node: Node) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S  # noqa: TID251  (a shell reads clocks)
    while libc.umount2(os.fsencode(node.mount), 0) != 0:
        number = ctypes.get_errno()
        late = time.monotonic() > deadline_s  # noqa: TID251
        if late or os.strerror(number) != "Device or resource busy":
            raise SetupError(f"{node.name}: cannot unmount {node.mount}: {os.strerror(number)}")
        time.sleep(_POLL_S)


def clear_mount(point: Path) -> None:
    """Take away mounts at `point` whose daemon is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    while mount_at(point):
        if libc.umount2(os.fsencode(point), _MNT_DETACH) != 0:
            raise SetupError(f"cannot unmount {point}: {os.strerror(ctypes.get_errno())}")


def _synced(node: Node) -> bool:
    try:
        return bool(node.ask("status", 2.0)["synced"])
    except NotAnswering:
        if node.state() == "gone":
            raise SetupError(f"{node.name} ended; see {node.log}") from None
        return False


def _describe(node: Node) -> dict[str, Any]:
    mounted = mount_at(node.mount) is not None
    described: dict[str, Any] = {"name": node.name, "state": node.state(), "mounted": mounted}
    described |= {"mount": str(node.mount), "brick": str(node.brick), "daemon": None}
    if process := node.process:
        described["pid"] = process.pid
    if described["state"] == "running":
        with contextlib.suppress(NotAnswering):
            described["daemon"] = node.ask("status", 2.0)
    return described


def _write_config(node: Node, port: int, replicas: int, provider: str, *, tls: bool) -> None:
    staged = node.config.with_suffix(".new")
    staged.write_text(
        f'name = "{node.name}"\n'
        f'brick = "../bricks/{node.name}"\n'
        f'provider = "{provider}"\n'
        f'listen = "127.0.0.1:{port}"\n'
        f"replicas = {replicas}\n"
        'after_crash = "unmount"\n'  # `dev kill` is the loss of a node
        + (_TLS.format(name=node.name) if tls else "")
    )
    staged.replace(node.config)


def free_ports(count: int, taken: set[int]) -> list[int]:
    """Return TCP ports that nobody listens on now and that are not in `taken`."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
            if port in taken or port in ports:
                continue
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise SetupError(f"cannot make {path}: {failure.strerror}") from failure


def _in_parallel(action: Callable[[Node], None], nodes: Sequence[Node]) -> None:
    """Do it for all, wait for all, then raise the first failure."""
    with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
        tasks = [pool.submit(action, node) for node in nodes]
    for task in tasks:
        task.result()
