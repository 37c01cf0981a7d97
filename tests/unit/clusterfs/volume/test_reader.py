"""Reads that wait for others end when this node is lost, whatever they wait for."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from clusterfs.cluster import membership
from clusterfs.cluster.views import Member, State
from clusterfs.store.objects import inode_object
from clusterfs.volume.departed import Sent
from clusterfs.volume.reader import Reader
from dlm.errors import LockLost

OBJECT = inode_object(5)


def reader(*, views_come: bool) -> Reader:
    """Return a reader of node 1 that has no copy; node 2 never answers."""
    view = membership.founded("test", 1, 3)
    for number in (2, 1):
        view = membership.joined(
            view, Member(number, number, f"n{number}", "", State.UP, f"s{number}")
        )
    site: Any = SimpleNamespace(
        node=1,
        bit=2,
        store=None,
        view=view,
        may_serve=lambda _group: False,
        holds=lambda _group: False,
        others=lambda _mask: [2],
        call=lambda _node, _body: trio.sleep_forever(),
        current=trio.lowlevel.checkpoint if views_come else trio.sleep_forever,
        changed=trio.sleep_forever,
    )
    return Reader(site, lambda: None)


@pytest.mark.parametrize("views_come", [True, False])
@pytest.mark.parametrize(
    "wait",
    [
        lambda reader: reader.fetch(OBJECT, 0, [b"k"]),
        lambda reader: reader.read(OBJECT, 0, 0, 1),
        lambda reader: reader.marked([0]),
        lambda reader: reader.took_place(Sent(1, 1, 0), None),
    ],
)
async def test_a_read_ends_when_its_node_is_lost(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001
    wait: Any,
    *,
    views_come: bool,
) -> None:
    reads = reader(views_come=views_come)

    async def lost() -> None:
        with pytest.raises(LockLost):
            await wait(reads)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost)
            await trio.sleep(1)
            reads.lose()
        await lost()
        reads.begin()
        with pytest.raises(trio.TooSlowError), trio.fail_after(10):
            await wait(reads)
