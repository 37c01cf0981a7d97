"""Batches over a socket that takes little at a time; nothing after the kill."""

import socket

import pytest
import trio

from dlm.net.framing import Buffer, Decoder, Frame, Kind
from dlm.net.link import Link, _advance, _gather
from dlm.net.session import Session


def sockets() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return pair


async def test_partial_writes_keep_the_order_of_small_and_bulky(nursery: trio.Nursery) -> None:
    near, far = sockets()
    session, frames = Session(), list[Frame]()
    sender = Link(near, Decoder(), lambda _: None)
    receiver = Link(far, Decoder(window_bytes=10_000), frames.extend)
    sizes = [0, 10, 100_000, 5, 20_000, 300_000, 1] * 5
    for size in sizes:
        sender.push(session.push(Kind.MESSAGE, 1, 0, 0, 0, b"b", bytes(size)))
    nursery.start_soon(sender.run)
    nursery.start_soon(receiver.run)
    with trio.fail_after(300):
        while len(frames) < len(sizes):
            await trio.sleep(0.001)
    assert [len(frame.payload) for frame in frames] == sizes
    assert sender.sent_bytes == receiver.received_bytes == session.unacked_bytes
    assert sender.idle
    sender.kill("done")


async def test_both_ends_learn_that_one_was_killed() -> None:
    near, far = sockets()
    sender, receiver = (Link(sock, Decoder(), lambda _: None) for sock in (near, far))
    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.run)
            nursery.start_soon(receiver.run)
            await trio.testing.wait_all_tasks_blocked()
            sender.kill("enough")
            sender.kill("again")
    assert sender.reason == "enough"
    assert "closed by the peer" in receiver.reason


async def test_nothing_is_handed_over_after_a_kill() -> None:
    near, far = sockets()
    session, batches = Session(), list[list[Frame]]()

    def deliver(frames: list[Frame]) -> None:
        batches.append(frames)
        receiver.kill("had enough")

    receiver = Link(far, Decoder(window_bytes=100), deliver)
    with near:
        for _ in range(3):
            near.send(b"".join(session.push(Kind.MESSAGE, 1, 0, 0, 0, b"x" * 40)))
        await receiver.run()
    assert len(batches) == 1


async def test_garbage_kills_the_link() -> None:
    near, far = sockets()
    receiver = Link(far, Decoder(), lambda _: None)
    with near:
        near.send(b"\xff" * 100)
        await receiver.run()
    assert receiver.reason.startswith("malformed")


async def test_a_cancelled_link_closes_its_socket() -> None:
    near, far = sockets()
    link = Link(near, Decoder(), lambda _: None)
    with far, trio.move_on_after(0):
        await link.run()
    assert near.fileno() == -1


@pytest.mark.parametrize("sent", [0, 1, 3, 4, 9, 10])
def test_advance_removes_exactly_what_was_sent(sent: int) -> None:
    batch: list[Buffer] = [b"abc", b"defgh", b"ij"]
    _advance(batch, sent)
    assert b"".join(batch) == b"abcdefghij"[sent:]


def test_gather_joins_the_small_and_leaves_the_bulky() -> None:
    bulk = bytes(20_000)
    gathered = _gather([b"a", b"b", bulk, b"c", b"d"])
    assert gathered == [b"ab", bulk, b"cd"]
    assert gathered[1] is bulk
