"""A peer without a network: what waits, what fails, what is freed."""

import pytest
import trio

from dlm.errors import PeerLost
from dlm.net.errors import Refused
from dlm.net.framing import Frame, Kind
from dlm.net.handshake import Peer
from dlm.net.remote import Limits, Remote


def reply(number: int, kind: Kind = Kind.REPLY, code: int = 0) -> Frame:
    return Frame(kind, 1, code, 1, 0, number, 0, b"body", b"payload")


async def test_an_answer_may_come_before_or_after_one_waits(nursery: trio.Nursery) -> None:
    remote = Remote(Peer(2, 1, ""), Limits())
    first, second = (remote.begin(1, 0, b"", b"") for _ in range(2))
    remote.answered(reply(1))
    assert await first.wait() == (b"body", b"payload")
    nursery.start_soon(second.wait)
    await trio.testing.wait_all_tasks_blocked()
    remote.answered(reply(2))
    remote.answered(reply(2))  # the second is nobody's
    remote.answered(reply(99))
    assert remote.statistics()["calls"] == 0


async def test_a_refusal_is_raised() -> None:
    remote = Remote(Peer(2, 1, ""), Limits())
    call = remote.begin(1, 0, b"", b"")
    remote.answered(reply(1, Kind.REFUSED, 5))
    with pytest.raises(Refused) as refused:
        await call.wait()
    assert (refused.value.code, refused.value.detail) == (5, b"body")


async def test_the_number_of_calls_in_flight_is_limited(nursery: trio.Nursery) -> None:
    remote = Remote(Peer(2, 1, ""), Limits(calls=2))
    for _ in range(2):
        assert remote.has_room()
        remote.begin(1, 0, b"", b"")
    assert not remote.has_room()
    turns: list[str] = []

    async def wait(name: str) -> None:
        turn = await remote.turn()
        turns.append(name)
        remote.begin(1, 0, b"", b"")
        turn.release()

    nursery.start_soon(wait, "first")
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(wait, "second")
    await trio.testing.wait_all_tasks_blocked()
    assert turns == []
    for number, expected in ((1, ["first"]), (2, ["first", "second"])):
        remote.answered(reply(number))
        assert not remote.has_room()  # nobody overtakes those who wait
        remote.announce_room()
        await trio.testing.wait_all_tasks_blocked()
        assert turns == expected


async def test_closing_fails_calls_wakes_waiters_and_frees_everything() -> None:
    remote = Remote(Peer(2, 1, ""), Limits(room_bytes=1000, hard_bytes=100_000))
    call = remote.begin(1, 0, b"", bytes(2000))
    failed: list[bool] = []

    async def wait() -> None:
        (await remote.turn()).release()
        with pytest.raises(PeerLost):
            remote.begin(1, 0, b"", b"")
        failed.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(remote.wait_acknowledged)
        await trio.testing.wait_all_tasks_blocked()
        remote.close("gone")
    assert failed == [True]
    with pytest.raises(PeerLost):
        await call.wait()
    remote.push(Kind.MESSAGE, 1, 0, 0, 0, b"ignored")
    remote.session.validate()
    assert remote.session.unacked_bytes == 0
