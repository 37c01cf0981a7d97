"""Meshes inside TLS: whoever has not the right certificate gets nothing but a log line here."""

import datetime as dt
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from clusterfs import certificates
from clusterfs.errors import SetupError
from dlm.net.tls import Tls

CHANNEL = 2
NAMES = {1: "one", 2: "two"}
NOW = dt.datetime.now(dt.UTC)

Start = Callable[..., Awaitable[Any]]
Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    certificates.make_authority(folder, NOW)
    for name in NAMES.values():
        certificates.issue(folder, name, folder, NOW)
    return folder


def tls(folder: Path, name: str, ca: Path | None = None) -> Tls:
    return Tls((ca or folder) / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key", NAMES.get)


async def introduced(start: Start, one: Tls | None, two: Tls | None) -> tuple[Any, Any]:
    low, high = await start(1, 11, tls=one), await start(2, 22, tls=two)
    for node in (low, high):
        node.mesh.set_peers([low.peer, high.peer])
    return low, high


async def test_messages_calls_and_bulk_pass_both_ways(
    start: Start, until: Until, authority: Path
) -> None:
    low, high = await introduced(start, tls(authority, "one"), tls(authority, "two"))
    bulk = os.urandom(5 << 20)
    for node, other in ((low, 2), (high, 1)):
        with trio.fail_after(300):
            assert await node.mesh.call(other, CHANNEL, b"x", bulk) == (b"re x", bulk)
    for number in range(300):
        low.mesh.send(2, CHANNEL, b"%d" % number)
    await until(lambda: len(high.handler.arrived) == 301)
    assert high.handler.bodies[1:] == [b"%d" % number for number in range(300)]


async def test_nothing_goes_over_the_wire_in_the_clear(
    start: Start, proxy: Any, until: Until, authority: Path
) -> None:
    low, high = await start(1, 11, tls=tls(authority, "one")), None
    high = await start(2, 22, tls=tls(authority, "two"))
    between = await proxy(high.peer.address)
    seen = bytearray()
    forward = between._forward

    async def spy(data: bytes, target: Any) -> None:
        seen.extend(data)
        await forward(data, target)

    between._forward = spy
    low.mesh.set_peers([low.peer, high.peer._replace(address=between.address)])
    high.mesh.set_peers([low.peer, high.peer])
    low.mesh.send(2, CHANNEL, b"a body to be kept secret", b"a payload to be kept secret" * 1000)
    await until(lambda: high.handler.arrived)
    assert len(seen) > 27000
    assert b"secret" not in seen


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    certificates.make_authority(tmp_path / "ca", NOW)
    certificates.issue(tmp_path / "ca", "one", tmp_path / "ca", NOW)
    return tmp_path / "ca"


async def refused(low: Any, high: Any, until: Until, *words: str) -> None:
    """Wait until one of them says one of these, and nobody got through."""
    await until(lambda: any(n.log.about(word) for n in (low, high) for word in words))
    assert not low.mesh.reachable(2)
    assert not high.mesh.reachable(1)
    assert not high.log.about("'connected'")


async def test_a_certificate_of_another_authority_is_refused(
    start: Start, until: Until, authority: Path, foreign: Path
) -> None:
    one = tls(foreign, "one", ca=authority)
    low, high = await introduced(start, one, tls(authority, "two"))
    await refused(low, high, until, "unable to get local issuer", "unknown ca", "UNKNOWN_CA")


async def test_a_listener_of_another_authority_is_refused(
    start: Start, until: Until, authority: Path, foreign: Path
) -> None:
    two = tls(foreign, "one", ca=authority)
    low, high = await introduced(start, tls(authority, "one"), two)
    await refused(low, high, until, "unable to get local issuer")


async def test_a_node_with_another_nodes_certificate_is_refused(
    start: Start, until: Until, authority: Path
) -> None:
    low, high = await introduced(start, tls(authority, "two"), tls(authority, "two"))
    await refused(low, high, until, "the certificate is of two")


async def test_an_expired_certificate_is_refused(
    start: Start, until: Until, authority: Path, tmp_path: Path
) -> None:
    certificates.issue(authority, "one", tmp_path, NOW - dt.timedelta(days=9), days=7)
    low, high = await introduced(start, tls(tmp_path, "one"), tls(authority, "two"))
    await refused(low, high, until, "certificate has expired")


@pytest.mark.parametrize("plain", [1, 2])
async def test_a_node_that_speaks_in_the_clear_is_refused(
    start: Start, until: Until, authority: Path, plain: int
) -> None:
    one = None if plain == 1 else tls(authority, "one")
    two = None if plain == 2 else tls(authority, "two")
    low, high = await introduced(start, one, two)
    await until(lambda: low.log.about("no handshake") or low.log.about("refused"))
    assert not low.mesh.reachable(2)
    assert not high.mesh.reachable(1)


async def test_garbage_on_the_port_is_a_log_line(
    start: Start, until: Until, authority: Path
) -> None:
    node = await start(2, 22, tls=tls(authority, "two"))
    host, _, port = node.peer.address.rpartition(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(os.urandom(1000))
        await until(lambda: node.log.about("connection refused"))
    with trio.fail_after(300):
        while node.mesh.statistics()["handshakes"]:
            await trio.sleep(0.01)


def test_keys_are_private_and_nothing_is_overwritten(authority: Path, tmp_path: Path) -> None:
    for name in ("ca", "one", "two"):
        assert stat.S_IMODE((authority / f"{name}.key").stat().st_mode) == 0o600
    before = (authority / "one.pem").read_bytes()
    with pytest.raises(SetupError, match="there already"):
        certificates.issue(authority, "one", authority, NOW)
    with pytest.raises(SetupError, match="there already"):
        certificates.make_authority(authority, NOW)
    assert (authority / "one.pem").read_bytes() == before
    with pytest.raises(SetupError, match="authority"):
        certificates.issue(tmp_path, "one", tmp_path, NOW)


async def test_a_revoked_certificate_is_refused(
    start: Start, until: Until, authority: Path, tmp_path: Path
) -> None:
    crl = tmp_path / "crl.pem"
    crl.write_bytes(revocation_of(authority, "one"))
    two = Tls(*(authority / "ca.pem", authority / "two.pem", authority / "two.key"), NAMES.get, crl)
    low, high = await introduced(start, tls(authority, "one"), two)
    await refused(low, high, until, "certificate revoked")


async def test_a_genuine_certificate_that_counts_no_more_is_refused(
    start: Start, until: Until, authority: Path
) -> None:
    asked: list[tuple[set[str], float]] = []

    def refusal(names: set[str], begins_s: float) -> str | None:
        asked.append((names, begins_s))
        return "removed long ago" if "one" in names else None

    files = (authority / "ca.pem", authority / "two.pem", authority / "two.key")
    two = Tls(*files, NAMES.get, refusal=refusal)
    low, high = await introduced(start, tls(authority, "one"), two)
    await refused(low, high, until, "removed long ago")
    begins = x509.load_pem_x509_certificate((authority / "one.pem").read_bytes())
    assert asked[0] == ({"one"}, begins.not_valid_before_utc.timestamp())


def revocation_of(authority: Path, name: str) -> bytes:
    """Return a list, signed by the authority, with one node's certificate in it."""
    ca = x509.load_pem_x509_certificate((authority / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
    revoked = x509.load_pem_x509_certificate((authority / f"{name}.pem").read_bytes())
    entry = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number)
    listed = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(NOW - dt.timedelta(days=1))
        .next_update(NOW + dt.timedelta(days=30))
        .add_revoked_certificate(entry.revocation_date(NOW).build())
        .sign(key, hashes.SHA256())  # type: ignore[arg-type]
    )
    return listed.public_bytes(serialization.Encoding.PEM)
