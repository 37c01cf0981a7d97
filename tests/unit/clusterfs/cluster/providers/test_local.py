"""Real daemons' memberships over the real file: processes, a pause, a kill."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from clusterfs.cluster import membership
from clusterfs.cluster.joining import Applicant
from clusterfs.cluster.node import Membership
from clusterfs.cluster.providers import Registration
from clusterfs.cluster.providers.local import LocalProvider
from clusterfs.cluster.views import Member, State

LEASE_S = 6.0  # longer than a busy machine or a slow disk makes a renewal wait

_DAEMON = """
import sys, trio
from clusterfs.cluster.joining import Applicant
from clusterfs.cluster.node import Membership
from clusterfs.cluster.providers.local import LocalProvider

async def announce(start):
    return "h:1"

async def main(path, name):
    applicant = Applicant(name, "store-" + name, groups=4)
    async with Membership.joined(LocalProvider(path), applicant, announce, lease_s=6.0) as member:
        print("up", member.node, flush=True)
        while True:
            await member.lost.wait()
            print("lost", member.lease_left_s() > 0, flush=True)
            await member.rejoin()
            print("rejoined", flush=True)

import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
trio.run(main, *sys.argv[1:])
"""


class Daemon:
    def __init__(self, path: Path, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _DAEMON, str(path), name], stdout=subprocess.PIPE, text=True
        )

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await trio.to_thread.run_sync(self.process.stdout.readline)).strip()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "cluster.db", "n1")
    yield daemon
    daemon.process.kill()
    daemon.process.communicate()


async def announce(start: Registration) -> str:
    await trio.lowlevel.checkpoint()
    return f"h:{start.node}"


async def test_what_renewals_leave_in_the_log_is_tidied_up(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path / "cluster.db")
    await provider.identity(LEASE_S)
    founded = membership.founded("c", 4, 3)
    me = Member(1, 1, "n1", "h:1", State.UP, "s1")
    assert await provider.propose(membership.joined(founded, me), {})
    sizes = []
    for _ in range(4):
        for _ in range(500):
            assert await provider.renew(1, 1) == 1
        await provider.read()
        sizes.append((tmp_path / "cluster.db-wal").stat().st_size)
    assert sizes[-1] == sizes[0]
    await provider.close()


async def until_member(observer: Membership, node: int, *, is_in: bool) -> None:
    with trio.fail_after(300):
        while (observer.view.member(node) is not None) != is_in:
            await observer.entered(observer.view.epoch + 1)


async def test_a_stopped_process_is_removed_and_comes_back_by_itself(
    daemon: Daemon, tmp_path: Path
) -> None:
    assert await daemon.line() == "up 1"
    provider = LocalProvider(tmp_path / "cluster.db")
    applicant = Applicant("n2", "store-n2", groups=4)
    async with Membership.joined(provider, applicant, announce, lease_s=LEASE_S) as observer:
        assert observer.node == 2
        daemon.signal(signal.SIGSTOP)
        await until_member(observer, 1, is_in=False)
        daemon.signal(signal.SIGCONT)
        assert await daemon.line() == "lost False"
        assert await daemon.line() == "rejoined"
        await until_member(observer, 1, is_in=True)
        daemon.signal(signal.SIGKILL)
        await until_member(observer, 1, is_in=False)
        assert observer.lease_left_s() > 0
        await observer.leave()
    await provider.close()


async def test_identity_names_and_views_outlive_the_daemons(tmp_path: Path) -> None:
    identities = []
    incarnations = []
    for _ in range(2):
        provider = LocalProvider(tmp_path / "cluster.db")
        identities.append(await provider.identity(LEASE_S))
        applicant = Applicant("n1", "s1", cluster=identities[0].cluster, groups=4)
        async with Membership.joined(provider, applicant, announce, lease_s=LEASE_S) as member:
            incarnations.append(member.incarnation)
            if member.view.stopped[0]:
                await member.restart_groups(range(4))
            epoch = member.view.epoch
            await member.leave()
        await provider.close()
    assert identities[0] == identities[1]
    assert incarnations == [1, 2]
    assert epoch == 4, "join, leave, join, restart"
