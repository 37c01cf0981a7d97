import msgspec
import pytest
import trio
import trio.testing

from clusterfs.cluster.latest import Latest
from clusterfs.cluster.membership import founded

FIRST = founded("c", 2, 3)


async def test_subscribers_hear_of_a_view_before_those_who_wait_for_it() -> None:
    latest = Latest()
    heard: list[str] = []
    latest.adopt(FIRST)
    latest.subscribe(lambda old, new: heard.append(f"{old.epoch} to {new.epoch}"))

    async def wait() -> None:
        await latest.wait_later()
        heard.append("waiter")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        latest.adopt(msgspec.structs.replace(FIRST, epoch=4))
        latest.adopt(msgspec.structs.replace(FIRST, epoch=6))
    assert heard == ["0 to 4", "4 to 6", "waiter"]


def test_only_a_later_view_is_adopted() -> None:
    latest = Latest()
    assert latest.newer(FIRST)
    latest.adopt(FIRST)
    assert not latest.newer(FIRST)
    with pytest.raises(AssertionError):
        latest.adopt(FIRST)
