"""When a node may put its damaged brick away by itself."""

from pathlib import Path

import pytest
import trio
import trio.testing

from clusterfs.brick import health, is_dispensable, open_brick
from clusterfs.cluster import membership
from clusterfs.cluster.providers import Identity, Snapshot
from clusterfs.cluster.providers.local import LocalProvider
from clusterfs.cluster.views import Member, State, View
from clusterfs.config import Config
from clusterfs.errors import SetupError

pytestmark = pytest.mark.trio
IDENTITY = Identity("00000000-0000-0000-0000-000000000001", bytes(32), 1.0)


class Views(LocalProvider):
    """A provider that shows these views, one after the other; it stays at the last."""

    def __init__(self, *views: View | None) -> None:
        self._left = list(views)

    async def read(self) -> Snapshot:
        await trio.lowlevel.checkpoint()
        view = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        return Snapshot(view, {}, frozenset())

    async def names(self) -> dict[int, str]:
        await trio.lowlevel.checkpoint()
        return {1: "n1", 2: "n2", 3: "n3"}


def three_in_sync() -> View:
    view = membership.founded("c", 4, 3)
    for node in (1, 2, 3):
        member = Member(node, 10 + node, f"n{node}", f"h:{node}", State.UP, f"s{node}")
        view = membership.joined(view, member)
        view = membership.in_sync(view, node, 10 + node, range(4)) or view
    return view


def without(view: View, *nodes: int) -> View:
    for node in nodes:
        removed = membership.removed(view, {10 + node})
        assert removed is not None
        view = removed
    return view


async def test_it_may_once_living_peers_have_removed_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    view = three_in_sync()
    leaving = membership.leaving(view, {13})
    assert leaving is not None
    assert await is_dispensable(Views(view, view, leaving, without(view, 3)), "n3", 30)
    assert autojump_clock.current_time() < 30


async def test_it_may_not_while_nobody_removes_it(autojump_clock: trio.testing.MockClock) -> None:
    """Power was cut everywhere: each copy may be the only one of something."""
    assert not await is_dispensable(Views(three_in_sync()), "n3", 30)
    assert autojump_clock.current_time() >= 30


async def test_it_may_not_if_it_has_the_last_copy() -> None:
    assert not await is_dispensable(Views(without(three_in_sync(), 1, 2, 3)), "n3", 30)
    assert await is_dispensable(Views(without(three_in_sync(), 3, 1, 2)), "n3", 30)


async def test_it_may_not_if_the_cluster_does_not_know_it() -> None:
    assert not await is_dispensable(Views(without(three_in_sync(), 3)), "n9", 30)
    assert not await is_dispensable(Views(None), "n1", 30)


async def test_a_damaged_brick_is_set_aside_once_and_then_left_to_a_person(tmp_path: Path) -> None:
    config = Config(name="n3", brick=str(tmp_path), segment_mib=4)
    failures: list[OSError] = []
    provider = Views(without(three_in_sync(), 3))
    for number in (1, 2):
        store = await open_brick(config, IDENTITY, provider, failures.append)
        store.set_fact("x", number)
        await store.close()
        assert len(health(config)) == number - 1
        (tmp_path / "checkpoint" / "data.mdb").write_bytes(b"rubbish" * 5000)
    assert "set-aside-1" in health(config)[0]
    assert (tmp_path / "set-aside-1" / "brick.json").exists(), "nothing is deleted"
    with pytest.raises(SetupError, match="set-aside-1 lies there from the last time"):
        await open_brick(config, IDENTITY, provider, failures.append)
    assert (tmp_path / "brick.json").exists()


async def test_a_brick_that_the_cluster_counts_on_is_not_touched(tmp_path: Path) -> None:
    config = Config(name="n3", brick=str(tmp_path), segment_mib=4)
    provider = Views(without(three_in_sync(), 1, 2, 3))
    store = await open_brick(config, IDENTITY, provider, lambda _: None)
    await store.close()
    (tmp_path / "checkpoint" / "data.mdb").write_bytes(b"rubbish" * 5000)
    with pytest.raises(SetupError, match="the cluster counts on this brick"):
        await open_brick(config, IDENTITY, provider, lambda _: None)
    assert (tmp_path / "brick.json").exists()
    assert health(config) == []
