"""A daemon whose ports get nonsense all the time: it serves on, as before, and does not grow.

Strangers send noise, truncated and mutated greetings, TLS records and admin requests, from several
threads. CLUSTERFS_FUZZ_S is how long, for each of the two kinds of mesh; CLUSTERFS_SEED the seed.
"""

import contextlib
import os
import random
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from clusterfs import config, control
from clusterfs.cli.dev import Cluster, Node
from dlm.net.framing import Kind
from dlm.net.greeting import handshake_frame
from dlm.net.handshake import Dialer, Peer

SECONDS = float(os.environ.get("CLUSTERFS_FUZZ_S", "8"))
SEED = int(os.environ.get("CLUSTERFS_SEED", "0"))
THREADS = 4
GROWTH_BYTES = 64 << 20
TLS_RECORDS = (
    *(b"\x16\x03\x01", b"\x16\x03\x03\xff\xff"),
    *(b"\x15\x03\x03\x00\x02\x02\x28", b"\x17\x03\x03"),
)


class Strangers:
    """Threads that send nonsense to one node until they are stopped."""

    def __init__(self, node: Node, seed: str) -> None:
        loaded = config.load(node.config)
        host, _, port = loaded.listen.rpartition(":")
        self._address = host, int(port)
        self._encrypts = loaded.tls.ca is not None
        self._control = node.brick / "control.sock"
        self._cluster = node.ask("status")["cluster"]
        self._stop = False
        self.sent = 0
        self._threads = [
            Thread(target=self._run, args=(random.Random(f"{seed} {number}"),), daemon=True)
            for number in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join(150)
            assert not thread.is_alive(), "a stranger is kept waiting"

    def _run(self, chance: random.Random) -> None:
        while not self._stop:
            with contextlib.suppress(OSError):  # they are hung up on: that is the point
                if chance.randrange(6):
                    self._bother_the_mesh(chance)
                else:
                    self._bother_the_admin_socket(chance)
            self.sent += 1

    def _bother_the_mesh(self, chance: random.Random) -> None:
        with socket.create_connection(self._address, timeout=60) as line:
            talk: socket.socket = line
            if self._encrypts and chance.randrange(2):
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                talk = context.wrap_socket(line)
            with talk:
                for _ in range(chance.randrange(1, 4)):
                    talk.sendall(self._nonsense(chance))
                if chance.randrange(2):
                    talk.settimeout(0.2)
                    talk.recv(4096)

    def _bother_the_admin_socket(self, chance: random.Random) -> None:
        with socket.socket(socket.AF_UNIX) as line, control.short(self._control) as address:
            line.settimeout(60)
            line.connect(address)
            line.sendall(
                chance.choice(
                    (
                        chance.randbytes(chance.randrange(1, 3000)) + b"\n",
                        b'{"request": ' * chance.choice((1, 3000)) + b"\n",
                        b'{"request": ["status"]}\n',
                        b'{"request": "scrub", "action": {"start": []}, "rate_bytes": -1}\n',
                        b'{"request": "tune", "flush_executors": 1e99}\n',
                        b"x" * chance.choice((100, 70_000)),
                    )
                )
            )
            line.settimeout(0.2)
            line.recv(4096)

    def _nonsense(self, chance: random.Random) -> bytes:
        nonce = chance.randbytes(32)
        names = (self._cluster, "other", "", "x" * 256)
        me, target = Peer(chance.randrange(3), chance.randrange(9), ""), Peer(1, 1, "")
        dialer = Dialer(me, target, chance.choice(names), b"guess", chance.randrange(9), nonce)
        hello = bytearray(handshake_frame(Kind.HELLO, dialer.hello))
        how = chance.randrange(7)
        if how == 0:
            return chance.randbytes(chance.randrange(1, 20_000))
        if how == 1:
            return bytes(hello[: chance.randrange(1, len(hello))])
        if how == 2:
            hello[chance.randrange(len(hello))] ^= 1 << chance.randrange(8)
        if how == 3:
            hello[4:12] = chance.randbytes(8)  # lengths
        if how == 4:
            return bytes(hello) + handshake_frame(Kind.PROOF, chance.randbytes(70))
        if how == 5:
            return chance.choice(TLS_RECORDS) + chance.randbytes(chance.randrange(400))
        if how == 6:
            kind = Kind(chance.choice(list(Kind)))
            return handshake_frame(kind, chance.randbytes(chance.randrange(200)))
        return bytes(hello)


def resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.timeout(600 + 10 * SECONDS)
@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "tls"])
def test_nonsense_on_every_port_disturbs_nobody(
    make_cluster: Callable[..., Cluster], *, encrypted: bool
) -> None:
    (node,) = make_cluster(1, 1, tls=encrypted).nodes
    before = node.ask("status", timeout_s=120)
    strangers = Strangers(node, f"{SEED} {encrypted}")
    until_s = time.monotonic() + SECONDS
    path = node.mount / "file"
    path.write_bytes(b"before" * 1000)
    warm = resident_bytes(before["pid"])
    # Few writes: what they leave in caches is not what is measured.
    while time.monotonic() < until_s or strangers.sent <= THREADS:
        assert path.read_bytes() == b"before" * 1000
        os.statvfs(node.mount)
        time.sleep(0.1)
    path.write_bytes(b"after" * 1000)
    assert path.read_bytes() == b"after" * 1000
    strangers.stop()
    after = node.ask("status", timeout_s=120)
    assert (after["pid"], after["incarnation"]) == (before["pid"], before["incarnation"])
    assert resident_bytes(after["pid"]) < warm + GROWTH_BYTES
    log = node.log.read_text()
    assert '"connection refused"' in log
    assert "Traceback" not in log
