"""What every provider must do, run against each: the file, and a real etcd."""

import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from clusterfs.cluster import membership
from clusterfs.cluster.node import insist
from clusterfs.cluster.providers import Provider, Registration
from clusterfs.cluster.providers.etcd import EtcdProvider
from clusterfs.cluster.providers.etcd_gateway import Login
from clusterfs.cluster.providers.local import LocalProvider
from clusterfs.cluster.views import Member, State, View
from clusterfs.errors import SetupError

LEASE_S = 300.0  # a call may take a good part of it: a slow disk fails none

Opener = Callable[[], Provider]


@pytest.fixture(params=["local", "etcd"])
async def opener(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    opened: list[Provider] = []
    volume = f"v{uuid.uuid4()}"
    servers: Any = request.getfixturevalue("shared_etcd") if request.param == "etcd" else None

    def open_one() -> Provider:
        if servers is None:
            provider: Provider = LocalProvider(tmp_path / "cluster.db")
        else:
            provider = EtcdProvider(Login(servers.endpoints), volume, LEASE_S)
        opened.append(provider)
        return provider

    yield open_one
    for provider in opened:
        await provider.close()


@pytest.fixture
async def provider(opener: Opener) -> Provider:
    provider = opener()
    await provider.identity(LEASE_S)
    return provider


def member(node: int, incarnation: int, state: State = State.UP) -> Member:
    return Member(node, incarnation, f"n{node}", "h:1", state, f"s{node}")


async def first_view(provider: Provider) -> View:
    view = membership.joined(membership.founded("c", 4, 3), member(1, 1))
    assert await provider.propose(view, {})
    return view


async def test_the_first_proposal_of_an_identity_wins(opener: Opener) -> None:
    identities = []

    async def ask(lease_s: float) -> None:
        provider = opener()  # it may be busy for a moment: members ask again
        identities.append(await insist(lambda: provider.identity(lease_s)))

    async with trio.open_nursery() as nursery:
        for lease_s in (5.0, 6.0, 7.0):
            nursery.start_soon(ask, lease_s)
    assert len(set(identities)) == 1
    assert len(identities[0].secret) == 32
    assert uuid.UUID(identities[0].cluster)
    assert identities[0].lease_s in {5.0, 6.0, 7.0}


async def test_a_cluster_is_founded_only_on_request(opener: Opener) -> None:
    with pytest.raises(SetupError, match="not there"):
        await opener().identity(LEASE_S, found=False)
    identity = await opener().identity(LEASE_S)
    assert await opener().identity(LEASE_S, found=False) == identity


async def test_names_keep_their_numbers_and_incarnations_never_repeat(
    provider: Provider, opener: Opener
) -> None:
    starts: list[Registration] = []

    async def register(provider: Provider, name: str) -> None:
        starts.append(await insist(lambda: provider.register(name)))

    await provider.register("a")
    async with trio.open_nursery() as nursery:
        for name in ("b", "c", "a", "d"):
            nursery.start_soon(register, opener(), name)
    assert sorted(start.incarnation for start in starts) == [2, 3, 4, 5]
    assert sorted(start.node for start in starts) == [1, 2, 3, 4]
    again = await provider.register("a")
    assert (again.node, again.incarnation) == (1, 6)


async def test_there_are_62_names(provider: Provider) -> None:
    for n in range(62):
        await provider.register(f"n{n}")
    with pytest.raises(SetupError, match="62"):
        await provider.register("one more")
    assert (await provider.register("n61")).node == 62


async def test_a_view_is_replaced_only_from_the_epoch_before(
    provider: Provider, opener: Opener
) -> None:
    assert (await provider.read()).view is None
    first = await first_view(provider)
    second = membership.joined(first, member(2, 2))
    other = opener()
    assert await other.propose(second, {})
    assert not await provider.propose(membership.joined(first, member(3, 3)), {})
    assert (await provider.read()).view == second
    assert (await provider.read()).beats == {1: 0, 2: 0}


async def test_of_two_proposals_at_once_one_wins(provider: Provider, opener: Opener) -> None:
    view = await first_view(provider)
    results: dict[int, bool] = {}

    async def propose(provider: Provider, node: int) -> None:
        proposal = membership.joined(view, member(node, node))
        results[node] = await insist(lambda: provider.propose(proposal, {}))

    async with trio.open_nursery() as nursery:
        for node in (2, 3, 4, 5):
            nursery.start_soon(propose, opener(), node)
    assert sum(results.values()) == 1
    (winner,) = [node for node, won in results.items() if won]
    stored = (await provider.read()).view
    assert stored is not None
    assert [m.node for m in stored.members] == [1, winner]


async def test_the_store_of_a_name_is_remembered_after_its_member_left(
    provider: Provider,
) -> None:
    assert (await provider.register("n1")).store_id == ""
    gone = membership.removed(await first_view(provider), {1})
    assert gone is not None
    assert await provider.propose(gone, {})
    assert await provider.register("n1") == Registration(1, 2, "s1")
    with pytest.raises(SetupError, match="name this node n1"):
        await provider.register("n2", "s1")
    assert await provider.names() == {1: "n1"}
    assert await provider.register("n1", "s1") == Registration(1, 3, "s1")
    assert (await provider.register("n2", "s2")).node == 2


async def test_only_the_incarnation_that_is_up_can_renew(provider: Provider) -> None:
    await provider.register("n1")
    view = await first_view(provider)
    assert await provider.renew(1, 1) == 1
    assert await provider.renew(1, 2) is None
    leaving = membership.leaving(view, {1})
    assert leaving is not None
    assert await provider.propose(leaving, {})
    assert await provider.renew(1, 1) is None
    assert (await provider.read()).beats == {1: 1}


async def test_a_removal_fails_when_the_heart_has_beaten_meanwhile(provider: Provider) -> None:
    view = await first_view(provider)
    await provider.renew(1, 1)
    removed = membership.removed(view, {1})
    assert removed is not None
    assert not await provider.propose(removed, {1: 0})
    assert (await provider.read()).view == view
    assert await provider.propose(removed, {1: 1})
    assert (await provider.read()).beats == {}


async def test_dropped_caches_are_told_and_forgotten_with_the_member(
    provider: Provider, opener: Opener
) -> None:
    view = await first_view(provider)
    await opener().caches_dropped(1, 1)
    await opener().caches_dropped(1, 1)
    assert (await provider.read()).caches_dropped == {1}
    removed = membership.removed(view, {1})
    assert removed is not None
    assert await provider.propose(removed, {})
    assert (await provider.read()).caches_dropped == frozenset()


async def test_a_forgotten_name_gives_its_number_back_last(provider: Provider) -> None:
    for n in range(1, 63):
        await provider.register(f"n{n}")
    await provider.forget("n7")
    await provider.forget("nobody")
    assert 7 not in await provider.names()
    assert (await provider.register("late")).node == 7


async def test_the_number_of_a_forgotten_name_rests_while_there_are_others(
    provider: Provider,
) -> None:
    for name in ("n1", "n2", "n3"):
        await provider.register(name)
    await provider.forget("n2")
    assert (await provider.register("n4")).node == 4


async def test_a_note_is_replaced_only_from_what_it_was(provider: Provider, opener: Opener) -> None:
    other = opener()
    assert await provider.set_note("a/1", b"x", None)
    assert not await other.set_note("a/1", b"y", None)
    assert not await other.set_note("a/1", None, b"y")
    assert await other.set_note("b/1", b"z", None)
    assert await provider.notes("a/") == {"a/1": b"x"}
    assert await other.set_note("a/1", b"y", b"x")
    assert await provider.notes("") == {"a/1": b"y", "b/1": b"z"}
    assert await provider.set_note("a/1", None, b"y")
    assert await provider.set_note("a/2", None, None)
    assert await other.notes("a/") == {}


async def test_one_of_many_takes_a_note(provider: Provider, opener: Opener) -> None:
    assert await provider.set_note("token/1", b"sealed", None)
    taken: list[bool] = []

    async def take(one: Provider) -> None:
        taken.append(await insist(lambda: one.set_note("token/1", None, b"sealed")))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(take, opener())
    assert sum(taken) == 1


async def test_what_others_do_is_noticed(provider: Provider, opener: Opener) -> None:
    view = await first_view(provider)
    other = opener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.run)
        with trio.fail_after(300):
            await until_quiet(provider)
            await other.renew(1, 1)
            await until_changed(provider)
            assert (await provider.read()).beats == {1: 1}
            await until_quiet(provider)
            assert await other.propose(membership.joined(view, member(2, 2)), {})
            await until_changed(provider)
            assert (await provider.read()).beats == {1: 1, 2: 0}
        nursery.cancel_scope.cancel()


async def until_quiet(provider: Provider) -> None:
    while await provider.changed():
        await provider.read()
        await trio.sleep(0.01)


async def until_changed(provider: Provider) -> None:
    while not await provider.changed():
        await trio.sleep(0.01)
