"""Messages and calls between meshes over real sockets."""

from typing import Any

import pytest
import trio

from dlm.errors import PeerLost
from dlm.net import Limits, Refused
from dlm.net.errors import CODE_MALFORMED, CODE_NO_HANDLER

CHANNEL = 2


async def test_messages_arrive_in_order_with_sender_incarnation_and_epoch(
    pair: Any, until: Any
) -> None:
    low, high = pair
    for n in range(500):
        low.mesh.send(2, CHANNEL, b"%d" % n, bytes(n))
        high.mesh.send(1, CHANNEL, b"%d" % n)
    await until(lambda: len(high.handler.arrived) == len(low.handler.arrived) == 500)
    assert high.handler.arrived == [(1, 11, 100, b"%d" % n, bytes(n)) for n in range(500)]
    assert low.handler.arrived == [(2, 22, 200, b"%d" % n, b"") for n in range(500)]
    assert low.mesh.reachable(2)
    assert high.mesh.reachable(1)


async def test_calls_are_answered_at_once_or_later_both_ways(pair: Any) -> None:
    low, high = pair
    assert await low.mesh.call(2, CHANNEL, b"now", b"p") == (b"re now", b"p")
    assert await high.mesh.call(1, CHANNEL, b"later", b"q") == (b"re later", b"q")


async def test_bulk_of_several_frames_travels_both_ways(pair: Any) -> None:
    low, high = pair
    bulk = bytes(range(256)) * (20 << 12)
    assert await low.mesh.call(2, CHANNEL, b"bulk", bytearray(bulk)) == (b"re bulk", bulk)
    assert await high.mesh.call(1, CHANNEL, b"later", memoryview(bulk)) == (b"re later", bulk)
    assert high.handler.arrived[0][4] == bulk


async def test_refusals_arrive_as_they_were_raised(pair: Any) -> None:
    low, _ = pair
    with pytest.raises(Refused) as refused:
        await low.mesh.call(2, CHANNEL, b"refuse")
    assert (refused.value.code, refused.value.detail) == (42, b"no refuse")
    with pytest.raises(Refused) as refused:
        await low.mesh.call(2, CHANNEL, b"later refuse")
    assert (refused.value.code, refused.value.detail) == (43, b"late no")


async def test_bad_bodies_and_unknown_channels_fail_the_call_only(pair: Any) -> None:
    low, high = pair
    with pytest.raises(Refused) as refused:
        await low.mesh.call(2, CHANNEL, b"garbage")
    assert refused.value.code == CODE_MALFORMED
    assert len(high.log.about("malformed call")) == 1
    with pytest.raises(Refused) as refused:
        await low.mesh.call(2, 77, b"hello?")
    assert refused.value.code == CODE_NO_HANDLER
    assert await low.mesh.call(2, CHANNEL, b"still here") == (b"re still here", b"")
    assert low.numbers(2)["connects"] == 1


async def test_a_bad_message_drops_the_connection_and_the_next_goes_on(
    pair: Any, until: Any
) -> None:
    low, high = pair
    for body in (b"before", b"garbage", b"after"):
        low.mesh.send(2, CHANNEL, body)
    await until(lambda: len(high.handler.arrived) == 2)
    assert high.handler.bodies == [b"before", b"after"]
    assert low.numbers(2)["connects"] == 2
    assert len(high.log.about("malformed: as asked")) == 1


async def test_calls_begin_in_the_order_in_which_they_and_messages_were_sent(
    pair: Any, nursery: trio.Nursery
) -> None:
    low, high = pair
    calls = []
    for n in range(200):
        kind = (b"now", b"later", b"held")[n % 3]
        calls.append(low.mesh.start_call(2, CHANNEL, kind + b" %d" % n))
        low.mesh.send(2, CHANNEL, b"message %d" % n)
    nursery.start_soon(low.mesh.call, 2, CHANNEL, b"last")
    high.handler.held.set()
    for n, call in enumerate(calls):
        kind = (b"now", b"later", b"held")[n % 3]
        assert await call.wait() == (b"re " + kind + b" %d" % n, b"")
    numbers = [int(body.split()[1]) for body in high.handler.bodies if body != b"last"]
    assert numbers == [n for n in range(200) for _ in (0, 1)]


async def test_the_first_of_a_pass_leaves_at_once_and_the_others_as_one_batch(
    pair: Any, until: Any
) -> None:
    low, high = pair
    await low.mesh.call(2, CHANNEL, b"connect")
    link = low.mesh._remotes[2].link
    writes = []
    plain = link.flush_nowait

    def flush() -> bool:
        writes.append(len(link._outbox))
        return bool(plain())

    link.flush_nowait = flush
    for _ in range(100):
        low.mesh.send(2, CHANNEL, b"x")
    await until(lambda: len(high.handler.arrived) == 101)
    assert writes[:2] == [1, 99]


async def test_a_frame_that_comes_alone_leaves_within_the_push_and_wakes_nobody(
    pair: Any, until: Any
) -> None:
    low, high = pair
    await low.mesh.call(2, CHANNEL, b"connect")
    link = low.mesh._remotes[2].link
    for number in range(5):
        await until(lambda: link._writer is not None)
        await trio.sleep(0.001)
        low.mesh.send(2, CHANNEL, b"x")
        assert link.idle, "it waits for the writer"
        assert link._writer is not None, "the writer was woken"
        await until(lambda count=number + 2: len(high.handler.arrived) == count)


async def test_a_socket_that_is_full_takes_the_rest_later(pair: Any, until: Any) -> None:
    low, high = pair
    await low.mesh.call(2, CHANNEL, b"connect")
    for _ in range(3):
        await trio.sleep(0.001)
        low.mesh.send(2, CHANNEL, b"x", bytes(15 << 20))
    await until(lambda: len(high.handler.arrived) == 4)


async def test_who_is_no_peer_gets_nothing(pair: Any) -> None:
    low, _ = pair
    low.mesh.send(9, CHANNEL, b"dropped")
    assert not low.mesh.reachable(9)
    with pytest.raises(PeerLost):
        await low.mesh.call(9, CHANNEL, b"x")
    with pytest.raises(PeerLost):
        low.mesh.start_call(9, CHANNEL, b"x")
    with pytest.raises(AssertionError):
        low.mesh.send(1, CHANNEL, b"to myself")


async def test_calls_in_flight_fail_when_the_peer_is_dropped(pair: Any, until: Any) -> None:
    low, high = pair
    call = low.mesh.start_call(2, CHANNEL, b"held")
    await until(lambda: high.handler.arrived)
    low.mesh.set_peers([])
    with pytest.raises(PeerLost):
        await call.wait()
    high.handler.held.set()
    await until(lambda: not high.mesh.reachable(1))


async def test_a_cancelled_call_frees_its_place_and_its_late_reply_harms_nobody(
    pair: Any, until: Any
) -> None:
    low, high = pair
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(low.mesh.call, 2, CHANNEL, b"held")
            await until(lambda: high.handler.arrived)
            assert low.numbers(2)["calls"] == 1
            scope.cancel()
    assert low.numbers(2)["calls"] == 0
    high.handler.held.set()
    assert await low.mesh.call(2, CHANNEL, b"next") == (b"re next", b"")
    assert low.numbers(2)["connects"] == 1


async def test_calls_wait_for_room_in_their_order(start: Any) -> None:
    low = await start(1, limits=Limits(room_bytes=10_000, hard_bytes=1 << 20))
    high = await start(2)
    low.mesh.set_peers([high.peer])
    async with trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(low.mesh.call, 2, CHANNEL, b"%d" % n, bytes(4000))
            await trio.lowlevel.checkpoint()
        assert low.numbers(2)["unacked_bytes"] <= 10_000 + 4100
        assert low.numbers(2)["calls"] == 3
        high.mesh.set_peers([low.peer])
    assert sorted(high.handler.bodies) == sorted(b"%d" % n for n in range(50))
    assert high.handler.bodies[3:] == sorted(high.handler.bodies[3:], key=int)


async def test_bulky_replies_wait_for_room(start: Any, until: Any) -> None:
    low = await start(1)
    high = await start(2, limits=Limits(room_bytes=1 << 20, hard_bytes=2 << 20))
    low.mesh.set_peers([high.peer])
    high.mesh.set_peers([low.peer])
    largest = 0
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(low.mesh.call, 2, CHANNEL, b"bulk", bytes(50_000))
        await until(lambda: high.handler.arrived)
        while low.numbers(2)["calls"]:
            largest = max(largest, high.numbers(1)["unacked_bytes"])
            await trio.lowlevel.checkpoint()
    assert 50_000 < largest <= (1 << 20) + 60_000
    assert not high.numbers(1)["given_up"]


async def test_a_peer_with_too_much_unacknowledged_is_given_up_and_reported(
    start: Any, until: Any
) -> None:
    low = await start(1, limits=Limits(room_bytes=10_000, hard_bytes=50_000))
    high = await start(2)
    low.mesh.set_peers([high.peer])  # which never lists us
    call = low.mesh.start_call(2, CHANNEL, b"x")
    for _ in range(60):
        low.mesh.send(2, CHANNEL, bytes(1000))
    assert "unacknowledged" in low.numbers(2)["given_up"]
    assert low.numbers(2)["unacked_bytes"] == 0
    with pytest.raises(PeerLost):
        await call.wait()
    with pytest.raises(PeerLost):
        await low.mesh.call(2, CHANNEL, b"x")
    await until(lambda: low.log.about("peer given up") and (2, 1) in low.lost)
    # a new incarnation starts afresh
    again = await start(2, 2)
    again.mesh.set_peers([low.peer])
    low.mesh.set_peers([again.peer])
    assert await low.mesh.call(2, CHANNEL, b"x") == (b"re x", b"")


async def test_stopping_the_mesh_fails_its_calls(pair: Any, until: Any) -> None:
    low, high = pair
    call = low.mesh.start_call(2, CHANNEL, b"held")
    await until(lambda: high.handler.arrived)
    await low.stop()
    with pytest.raises(PeerLost):
        await call.wait()
    await until(lambda: high.lost)
    assert high.lost == [(1, 11)]


async def test_becoming_another_incarnation_starts_every_session_afresh(pair: Any) -> None:
    low, high = pair
    assert await low.mesh.call(2, CHANNEL, b"old") == (b"re old", b"")
    low.mesh.become(low.peer._replace(incarnation=12))
    assert low.mesh.me.incarnation == 12
    assert not low.mesh.reachable(2)
    low.mesh.set_peers([high.peer])
    high.mesh.set_peers([low.peer._replace(incarnation=12)])
    assert await low.mesh.call(2, CHANNEL, b"new") == (b"re new", b"")
    assert high.handler.arrived[-1][:2] == (1, 12)


async def test_a_taken_port_is_an_os_error(pair: Any) -> None:
    low, high = pair
    with pytest.raises(OSError, match="in use"):
        await low.mesh.serve("127.0.0.1", int(high.peer.address.split(":")[1]))


async def test_nothing_more_of_a_batch_arrives_once_its_sender_is_dropped(
    pair: Any, until: Any
) -> None:
    low, high = pair
    await low.mesh.call(2, CHANNEL, b"connect")
    plain = high.handler.message

    def message(*arguments: Any) -> None:
        plain(*arguments)
        high.mesh.set_peers([])

    high.handler.message = message
    for n in range(5):
        low.mesh.send(2, CHANNEL, b"%d" % n)  # one batch
    await until(lambda: not low.mesh.reachable(2))
    assert high.handler.bodies == [b"connect", b"0"]
