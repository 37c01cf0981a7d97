"""Hosts on one machine: network namespaces on one bridge, each with two addresses of its own.

One is for etcd, the other for what the nodes say to each other: that may be cut alone.

A namespace has no name: it lives as long as a process in it, and its holder dies with the process
that made it. So nothing stays behind and nothing collides, whoever runs this at the same time.

Every host knows the others' link addresses by heart (permanent neighbours). To cut a direction, the
sender is given an address that nobody has: its packets are lost without a word to anybody, as on a
broken network; and no packet filter is needed.
"""

import contextlib
import itertools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

# Before a command: it gets SIGKILL when the thread that started it ends, however it ends.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_NOBODY = "02:00:00:00:00:ff"
_ETCD, _NODES = 77, 78  # second byte of the addresses


class Namespace:
    """One network namespace. Its holder has `mark` in its command line, for scripts/sweep."""

    def __init__(self, mark: Path) -> None:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        self._holder = subprocess.Popen(
            [*DIES_WITH_US, "unshare", "--net", "sh", "-c", 'echo; exec tail -f "$0"', str(mark)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"\n"

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def enter(self) -> list[str]:
        """The beginning of a command that is to run there."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def ip(self, lines: Iterable[str]) -> None:
        """Run commands of ip(8), one a line."""
        subprocess.run(
            [*self.enter, "ip", "-batch", "-"], input="\n".join(lines), text=True, check=True
        )

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()


class Network:
    """`count` hosts, 10.77.0.1 and on, for nodes 10.78.0.1 and on.

    What is cut is a set of directed pairs (from, to).
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.numbers = range(1, count + 1)
        self._cut: set[tuple[int, int, int]] = set()  # (second byte, from, to)
        with contextlib.ExitStack() as opened:
            self._bridge = self._opened(opened, folder / "hosts" / "bridge")
            self.hosts = {n: self._opened(opened, folder / "hosts" / f"h{n}") for n in self.numbers}
            self._connect()
            self._close = opened.pop_all()

    @staticmethod
    def _opened(stack: contextlib.ExitStack, mark: Path) -> Namespace:
        namespace = Namespace(mark)
        stack.callback(namespace.close)
        return namespace

    @staticmethod
    def address(number: int) -> str:
        return f"10.{_ETCD}.0.{number}"

    @staticmethod
    def node_address(number: int) -> str:
        return f"10.{_NODES}.0.{number}"

    def _connect(self) -> None:
        self._bridge.ip(["link add br0 type bridge", "link set br0 up"])
        for number, host in self.hosts.items():
            self._bridge.ip(
                [
                    f"link add eth0 netns {host.pid} type veth peer name p{number}",
                    f"link set p{number} master br0 up",
                ]
            )
            host.ip(
                [
                    "link set lo up",
                    f"link set eth0 address {_link(number)} up",
                    f"addr add {self.address(number)}/24 dev eth0",
                    f"addr add {self.node_address(number)}/24 dev eth0",
                ]
            )
        self._tell(_ways(itertools.permutations(self.numbers, 2)))

    def set_cut(
        self, pairs: Iterable[tuple[int, int]], *, between_nodes: Iterable[tuple[int, int]] = ()
    ) -> None:
        """Cut exactly these directions, and for nodes alone those others; all else works."""
        wanted = {*_ways(pairs), *((_NODES, *pair) for pair in between_nodes)}
        changed, self._cut = wanted ^ self._cut, wanted
        self._tell(changed)

    def around(self, number: int, *, out: bool = True, into: bool = True) -> set[tuple[int, int]]:
        """Return the directions from and to one host."""
        others = [n for n in self.numbers if n != number]
        found = {(number, n) for n in others} if out else set()
        return found | ({(n, number) for n in others} if into else set())

    def _tell(self, ways: Iterable[tuple[int, int, int]]) -> None:
        lines: dict[int, list[str]] = {}
        for way in ways:
            byte, source, target = way
            link = _NOBODY if way in self._cut else _link(target)
            lines.setdefault(source, []).append(
                f"neigh replace 10.{byte}.0.{target} lladdr {link} dev eth0 nud permanent"
            )
        for source, some in lines.items():
            self.hosts[source].ip(some)

    def close(self) -> None:
        self._close.close()


def _ways(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    return ((byte, *pair) for pair in pairs for byte in (_ETCD, _NODES))


def _link(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"
