"""The etcd provider against real etcd servers that are stopped, killed, compacted and guarded."""

import base64
import json
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trustme

from clusterfs.cluster import membership
from clusterfs.cluster.joining import Applicant
from clusterfs.cluster.node import Membership, insist
from clusterfs.cluster.providers import Registration
from clusterfs.cluster.providers.etcd import EtcdProvider
from clusterfs.cluster.providers.etcd_gateway import Gateway, Login, put
from clusterfs.cluster.views import Member, State
from clusterfs.errors import ProviderAway, SetupError

# A request that fails while it is sent leaves httpx's generator of the body to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*async_generator object:pytest.PytestUnraisableExceptionWarning"
)

Servers = Callable[..., Any]
LEASE_S = 300.0  # a call may take a good part of it: a slow disk fails none
KEPT_S = 10.0  # a lease that is kept while etcd elects another leader


def volume() -> str:
    return f"v{uuid.uuid4()}"


async def announce(start: Registration) -> str:
    await trio.lowlevel.checkpoint()
    return f"h:{start.node}"


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(300):
        while not condition():
            await trio.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_cluster_goes_on_without_one_of_three_etcd_members(
    etcd_servers: Servers, how: signal.Signals
) -> None:
    servers = etcd_servers(3)
    provider = EtcdProvider(Login(servers.endpoints), volume(), KEPT_S)
    applicant = Applicant("n1", "s1", groups=4)
    async with Membership.joined(provider, applicant, announce, lease_s=KEPT_S) as member:
        servers.signal(0, how)  # the one that the provider prefers
        renewals = member.statistics()["renewals"]
        await until(lambda: member.statistics()["renewals"] > renewals + 3)
        assert member.lease_left_s() > 0
        assert not member.lost.is_set()
        await member.leave()
    await provider.close()


async def test_without_a_quorum_a_member_is_lost_and_comes_back_by_itself(
    etcd_servers: Servers,
) -> None:
    servers = etcd_servers(3)
    provider = EtcdProvider(Login(servers.endpoints), volume(), 2.0)
    applicant = Applicant("n1", "s1", groups=4)
    async with Membership.joined(provider, applicant, announce, lease_s=2.0) as member:
        first = member.incarnation
        servers.stop(0)
        servers.stop(1)
        with trio.fail_after(300):
            await member.lost.wait()
        with pytest.raises(ProviderAway):
            await provider.read()
        servers.start(0)
        with trio.fail_after(300):
            await member.rejoin()
        assert member.incarnation > first
        assert member.lease_left_s() > 0
        await member.leave()
    await provider.close()


async def test_a_watch_survives_a_compaction_while_it_was_away(etcd_servers: Servers) -> None:
    servers = etcd_servers(1)
    login = Login(servers.endpoints)
    provider, other = (EtcdProvider(login, "v", lease_s) for lease_s in (6.0, LEASE_S))
    await other.identity(LEASE_S)
    view = membership.joined(
        membership.founded("c", 4, 3), Member(1, 1, "n1", "h:1", State.UP, "s1")
    )
    assert await other.propose(view, {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.run)
        with trio.fail_after(300):
            while await provider.changed():
                await insist(provider.read)
                await trio.sleep(0.01)
            servers.signal(0, signal.SIGSTOP)
            while not await provider.changed():  # nothing was heard for a lease
                await trio.sleep(0.1)
            servers.signal(0, signal.SIGCONT)
            for _ in range(3):
                await other.renew(1, 1)
            await compact(servers.endpoints[0])
            while (await insist(provider.read)).beats != {1: 3} or await provider.changed():
                await trio.sleep(0.05)
            await other.renew(1, 1)
            while not await provider.changed():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    for one in (provider, other):
        await one.close()


async def compact(endpoint: str) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=300) as client:
        answer = await client.post(f"{endpoint}/v3/kv/range", content='{"key": "AA=="}')
        revision = answer.json()["header"]["revision"]
        answer = await client.post(
            f"{endpoint}/v3/kv/compaction", content=json.dumps({"revision": revision})
        )
        assert answer.status_code == 200, answer.text


async def test_a_user_with_a_password_is_let_in_and_nobody_else(etcd_servers: Servers) -> None:
    servers = etcd_servers(1)
    await require_login(servers.endpoints[0])
    right = EtcdProvider(Login(servers.endpoints, "fs", "right"), "v", LEASE_S)
    identity = await right.identity(LEASE_S)
    for login in (Login(servers.endpoints, "fs", "wrong"), Login(servers.endpoints)):
        stranger = EtcdProvider(login, "v", LEASE_S)
        with pytest.raises(SetupError, match="refuses"):
            await stranger.identity(LEASE_S)
        await stranger.close()
    servers.stop(0)
    servers.start(0)  # etcd forgets its simple tokens
    servers.wait(0)
    with trio.fail_after(300):
        while True:
            try:
                assert await right.identity(LEASE_S) == identity
                break
            except ProviderAway:
                await trio.sleep(0.1)
    await right.close()


async def require_login(endpoint: str) -> None:
    def text(value: str) -> str:
        return base64.b64encode(value.encode()).decode()

    calls: list[tuple[str, dict[str, Any]]] = [
        ("user/add", {"name": "root", "password": "secret"}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("user/add", {"name": "fs", "password": "right"}),
        ("role/add", {"name": "fs"}),
        (
            "role/grant",
            {
                "name": "fs",
                "perm": {
                    "permType": "READWRITE",
                    "key": text("/clusterfs/v/"),
                    "range_end": text("/clusterfs/v0"),
                },
            },
        ),
        ("user/grant", {"user": "fs", "role": "fs"}),
        ("enable", {}),
    ]
    async with httpx.AsyncClient(trust_env=False, timeout=300) as client:
        for path, body in calls:
            answer = await client.post(f"{endpoint}/v3/auth/{path}", content=json.dumps(body))
            assert answer.status_code == 200, (path, answer.text)


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority, tmp_path


async def test_tls_checks_both_sides(
    etcd_servers: Servers, authority: tuple[trustme.CA, Path]
) -> None:
    ca, folder = authority
    for name in ("server", "client"):
        made = ca.issue_cert("127.0.0.1", "localhost")
        made.private_key_pem.write_to_path(folder / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    servers = etcd_servers(
        1,
        extra=(
            f"--cert-file={folder / 'server.pem'}",
            f"--key-file={folder / 'server.key'}",
            f"--trusted-ca-file={folder / 'ca.pem'}",
            "--client-cert-auth",
        ),
    )
    right = Login(
        servers.endpoints,
        ca=folder / "ca.pem",
        certificate=folder / "client.pem",
        key=folder / "client.key",
    )
    provider = EtcdProvider(right, "v", LEASE_S)
    assert (await provider.identity(LEASE_S)).cluster
    await provider.close()
    for wrong in (right._replace(ca=None), right._replace(certificate=None, key=None)):
        provider = EtcdProvider(wrong, "v", LEASE_S)
        with pytest.raises(
            ProviderAway, match=r"(?i)certificate|ssl|closed|reset|no usable answer"
        ):
            await provider.identity(LEASE_S)
        await provider.close()
    with pytest.raises(SetupError, match="TLS files"):
        EtcdProvider(right._replace(ca=folder / "none.pem"), "v", LEASE_S)


async def test_keys_of_another_format_are_refused(shared_etcd: Any) -> None:
    login, name = Login(shared_etcd.endpoints), volume()
    gateway = Gateway(login, LEASE_S)
    key = f"/clusterfs/{name}/identity".encode()
    for value, message in ((b"\x91\x02", "format 2"), (b"\xc1", "not a clusterfs cluster")):
        await gateway.transact([], [put(key, value)])
        provider = EtcdProvider(login, name, LEASE_S)
        with pytest.raises(SetupError, match=message):
            await provider.identity(LEASE_S)
        await provider.close()
    await gateway.close()


async def test_nobody_there_is_an_absent_provider(unused_port: int) -> None:
    provider = EtcdProvider(Login((f"http://127.0.0.1:{unused_port}",)), "v", LEASE_S)
    with pytest.raises(ProviderAway, match=r"127\.0\.0\.1"):
        await provider.read()
    await provider.close()
